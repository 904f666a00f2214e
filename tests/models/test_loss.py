"""The loss that parts are guarded by, against the sum over targets by hand."""

import pytest
import torch

from optimum_moreau.models.loss import mean_loss
from tests.tiny import own_windows, tiny_model


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_what_all_windows_begin_with_is_context(prefix, batch_size):
    model = tiny_model("llama").eval()
    windows = own_windows(model, 6, 12).clone()
    windows[:, 0] = torch.arange(len(windows))
    windows[:, :prefix] = 1
    first = max(prefix, 1)
    with torch.no_grad():
        likely = model(windows).logits.log_softmax(-1)
    expected = -likely[:, first - 1 : -1].gather(2, windows[:, first:, None]).mean()
    assert mean_loss(model, windows, batch_size) == pytest.approx(float(expected), rel=1e-5)
