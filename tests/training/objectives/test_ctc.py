"""CTC over packed clips against torch's CTC clip by clip, best-path decoding, and packs without rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auris.audio import Geometry, n_frames_with_padding
from auris.data.collate import Sample, collate
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings
from auris.training.objectives.ctc import CTC

pytestmark = pytest.mark.usefixtures("float64")

GEOMETRY = Geometry(n_mels=8, pool=1)

N_TEXT = 11
FRAMES = (40, 23, 61)
TARGETS = ([3, 3, 7], [1], [10, 0, 5, 5, 2])


class Net(nn.Module):
    """The part of an AudioLM that CTC uses: its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(n_mels=8, width=16, n_layers=1, n_heads=2, ffn=24)

    encode_frames, _encoder_output = AudioLM.encode_frames, AudioLM._encoder_output


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def objective() -> CTC:
    torch.manual_seed(1)
    return CTC(width=16, n_text=N_TEXT)


def sample(number: int, frames: int, target: list[int]) -> Sample:
    ids = np.array(target, dtype=np.int64)
    all_false = np.zeros(len(ids), dtype=bool)
    mel = torch.randn(8, n_frames_with_padding(frames), generator=torch.Generator().manual_seed(frames))
    return Sample(
        row=number,
        ids=ids,
        supervise=all_false,
        audio_mask=all_false,
        mels=(mel,),
        frames=(frames,),
        audio_seconds=0.0,
        loss_curve="asr",
    )


def pack(frames=FRAMES, targets=TARGETS) -> dict:
    samples = [sample(n, f, t) for n, (f, t) in enumerate(zip(frames, targets, strict=True))]
    return collate(samples, geometry=GEOMETRY)


def reference(net: Net, objective: CTC, frames: int, target: list[int]) -> Tensor:
    """Return torch's CTC loss of one clip that is encoded separately."""
    batch = pack([frames], [target])
    hidden, lengths = net.encoder(batch["mel"], batch["frames"])
    scores = objective.head(net.encoder.norm(hidden)).log_softmax(-1)
    target_lengths = torch.tensor([len(target)])
    return F.ctc_loss(scores[:, None], torch.tensor([target]), lengths, target_lengths, blank=N_TEXT, reduction="sum")


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(loss, parameters, allow_unused=False))


def test_loss_and_gradients_equal_those_of_torch_summed_over_clips(net, objective):
    loss, sums = objective(net, pack())
    expected = sum(reference(net, objective, f, t) for f, t in zip(FRAMES, TARGETS, strict=True))
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert int(sums["rows_too_short_for_ctc"]) == 0
    torch.testing.assert_close(
        gradients(loss, net, objective), gradients(expected, net, objective), rtol=1e-4, atol=1e-5
    )


def test_the_count_is_the_number_of_target_tokens(objective):
    assert int(objective.count(pack())) == 9


def test_an_empty_pack_gives_every_parameter_a_gradient_of_zero(net, objective):
    empty = collate([], geometry=GEOMETRY)
    loss, sums = objective(net, empty)
    assert loss.item() == 0 and int(objective.count(empty)) == 0 and int(sums["rows_too_short_for_ctc"]) == 0
    assert not any(gradient.any() for gradient in gradients(loss, net, objective))
    assert objective.answer(net, empty, GenerationSettings(max_new_tokens=1)) == []


def test_a_clip_too_short_for_its_text_is_left_out_and_counted(net, objective):
    loss, sums = objective(net, pack((40, 4), ([3, 3, 7], [1, 2, 3, 4])))
    torch.testing.assert_close(loss, reference(net, objective, 40, [3, 3, 7]), check_dtype=False)
    assert int(sums["rows_too_short_for_ctc"]) == 1
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, net, objective))


class FixedPathNet(nn.Module):
    """A net whose encoder activates one given channel per frame."""

    def __init__(self, *paths: list[int]):
        super().__init__()
        self.paths = paths

    def encode_frames(self, pack: dict) -> tuple[Tensor, Tensor]:
        channels = torch.tensor([symbol for path in self.paths for symbol in path])
        return 9.0 * F.one_hot(channels, 4).to(torch.get_default_dtype()), torch.tensor(
            [len(path) for path in self.paths]
        )


def test_the_best_path_merges_repeats_and_drops_blanks_within_each_clip():
    objective = CTC(width=4, n_text=3)
    with torch.no_grad():
        objective.head.weight.copy_(torch.eye(4))
        objective.head.bias.zero_()
    blank = 3
    net = FixedPathNet([blank, 1, 1, blank, 1, 2, 2], [2, blank, blank], [blank, blank], [0, 1, 0, 0])
    batch = {"rows": [0, 1, 2, 3]}
    answers = objective.answer(net, batch, GenerationSettings(max_new_tokens=99))
    assert answers == [[1, 1, 2], [2], [], [0, 1, 0]]
    answers = objective.answer(net, batch, GenerationSettings(max_new_tokens=2, stop=frozenset({2})))
    assert answers == [[1, 1], [], [], [0, 1]]


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"repetition_penalty": 1.1}, {"min_new_tokens": 1, "stop": frozenset({1})}]
)
def test_generation_settings_that_do_not_apply_to_the_best_path_are_refused(net, objective, settings):
    with pytest.raises(ValueError, match="CTC decodes the best path"):
        objective.answer(net, pack(), GenerationSettings(**settings))
