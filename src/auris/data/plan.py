"""Plan of training: which rows make a step, and how a step's rows are divided into packs.

The plan is a function of (row ids, weights, seed) and of the step's number. No process holds a position, so resuming is
arithmetic, and every world size and every arm of a study sees the same rows at the same step.
"""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice

import numpy as np

from auris.data.manifests import Manifest, row_keys
from auris.data.rows import row_seed
from auris.errors import UserError

# A pack-filling plan looks this far ahead in the stream for rows that fit: rows stay near their place (batches stay
# as good as random), and the packs come out full.
POOL = 256  # rows

Entry = tuple[int, int]
"""(row number, data epoch of its source, counted from 0)"""


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class _Merge:
    """Two streams merged into one, `share` of it from the left: of its first p rows, p * share, rounded, are left.

    A merge of merges gives a stream of many sources in which any position is found without going through the ones
    before it.
    """

    left: int | _Merge  # a source's index
    right: int | _Merge
    share: float


def _locate(tree: int | _Merge, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the source (n,) of each position (n,) of a merged stream, and how many of its rows came before."""
    if isinstance(tree, int):
        return np.full_like(positions, tree), positions
    before = np.floor(positions * tree.share + 0.5).astype(np.int64)
    is_left = np.floor((positions + 1) * tree.share + 0.5) > before
    sources, counts = np.empty_like(positions), np.empty_like(positions)
    for branch, chosen, rank in ((tree.left, is_left, before), (tree.right, ~is_left, positions - before)):
        sources[chosen], counts[chosen] = _locate(branch, rank[chosen])
    return sources, counts


class Plan:
    """The rows of every step, and their packs.

    The stream: each source is gone through again and again, every time in another order, which is that of a hash of
    (row id, seed, epoch): the order of the manifest and the other rows do not matter. Sources are merged two by two,
    the two lightest first (Huffman's tree), so that of any first p rows of the stream a source has p times its share,
    give or take half a row for two sources, and always less than two. Without weights, sources count by their rows,
    and `epoch_rows` rows of the stream hold every row exactly once.

    With a temperature, or where a source has a cap, an epoch holds a whole number of rows of each source, its quota,
    exactly: its share of as many rows as there are, or its cap. What a cap takes away makes the epoch shorter and
    gives the others nothing. A source's next epoch goes on where this one stopped: none of its rows comes again before
    all of them have come.

    A row of length 0 is unusable. It keeps its place in the stream and is left out of the packs, so the steps of all
    other rows stay as they were.

    Args:
        sources: names unique; weights given for all of them or for none. Rows are numbered through all of them.
        temperature: T of shares in proportion to rows^(1/T) (Devlin's multilingual BERT; Raffel et al. 2020, section
            3.5.2): 1 and None are by rows, and the larger T is, the more equal the sources are.
        lengths: (rows,) tokens of each row at most, 0 = unusable.
        seed: of the orders.
        rows_per_step: step k is rows [k R, (k+1) R) of the stream, whatever the lengths, budget and world size are.
            None: a step is `packs_per_step` full packs, filled from the stream within each epoch.
        token_budget: tokens in a pack at most.
        packs_per_step: packs of all ranks together in a step; used where rows_per_step is None.

    Raises:
        ValueError: naming the setting to change, or a row longer than the budget.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Manifest],
        lengths: np.ndarray,
        seed: int,
        rows_per_step: int | None,
        token_budget: int,
        packs_per_step: int = 1,
        temperature: float | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.seed = seed
        self.rows_per_step = rows_per_step
        self.token_budget = token_budget
        self.packs_per_step = packs_per_step
        self.temperature = temperature
        self._starts = list(accumulate((len(source.rows) for source in self.sources), initial=0))
        self._check()
        self._quotas = self._share_out()
        self._keys = [row_keys(source.rows) for source in self.sources]
        self._mux = _merge(self.sources, self._quotas or [_weight(source) for source in self.sources])
        self._order = lru_cache(2 * len(self.sources))(self._shuffle)  # a step may lie across two epochs of each source
        self._epoch_packs = lru_cache(2)(self._fill)
        self._fill_ends: list[int] = []  # packs of epochs 0..e together

    def _check(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise UserError(f"data sources {names}: expected at least one, with different names")
        for source in self.sources:
            if not len(source.rows):
                raise UserError(f"source {source.name} has no rows")
            if source.weight is not None and not source.weight > 0:
                raise UserError(f"source {source.name}: weight={source.weight}, expected a number above 0 or null")
        if len({source.weight is None for source in self.sources}) > 1:
            raise UserError(f"data sources {names}: expected a weight for each of them or for none")
        self._check_temperature()
        for name in ("rows_per_step", "packs_per_step", "token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value}: expected 1 or more")
        assert self.lengths.shape == (self._starts[-1],) and self.lengths.min() >= 0, (self.lengths.shape, self._starts)
        if not self.lengths.any():
            raise UserError(f"none of the {len(self.lengths)} rows of {names} is usable")
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > self.token_budget:
            number = bisect_right(self._starts, longest) - 1
            source = self.sources[number]
            row = source.rows[longest - self._starts[number]]
            raise UserError(
                f"row {row.id!r} of {source.name} has {self.lengths[longest]} tokens and "
                f"does not fit data.token_budget={self.token_budget} (with it "
                f"{np.count_nonzero(self.lengths > self.token_budget)} rows do not): "
                f"data.token_budget={self.lengths[longest]} or more holds them all, "
                "data.long_audio=skip leaves them out"
            )

    def _check_temperature(self) -> None:
        if self.temperature is None:
            return
        given = f"data.temperature={self.temperature}"
        if not 0 < self.temperature < math.inf:
            raise UserError(f"{given}: expected a number above 0 (1: by rows, larger: more equal shares)")
        if len(self.sources) < 2:
            raise UserError(
                f"{given} has no effect on a single source: leave it null, or list the parts that it is to balance, "
                "as data.train=[{path: a.jsonl, tasks: [asr]}, {path: a.jsonl, tasks: [aac]}]"
            )
        if self.sources[0].weight is not None:
            raise UserError(f"{given} has no effect where sources have weights: leave out one or the other")

    def _share_out(self) -> list[int] | None:
        """Rows of each source in an epoch, None where weights alone say what the mix is."""
        caps = [source.max_per_epoch for source in self.sources]
        if self.temperature is None and all(cap is None for cap in caps):
            return None
        shares = np.array([_weight(source) for source in self.sources]) ** (1 / (self.temperature or 1))
        quotas = np.rint(shares / shares.sum() * len(self.lengths)).astype(int).clip(min=1).tolist()
        for source, cap, quota in zip(self.sources, caps, quotas, strict=True):
            if cap is not None and not 1 <= cap < quota:
                raise UserError(
                    f"source {source.name}: max_per_epoch={cap}, expected 1 or more and less than the {quota} of its "
                    "rows that an epoch has without it"
                )
        return [quota if cap is None else cap for quota, cap in zip(quotas, caps, strict=True)]

    @property
    def epoch_rows(self) -> int:
        """Rows in one epoch of the stream, usable or not: as many as there are, or the quotas of all sources."""
        return sum(self._quotas) if self._quotas else len(self.lengths)

    def steps_for(self, epochs: int) -> int:
        """Steps that take the first `epochs` epochs of the stream; the last one may reach into the next epoch."""
        if self.rows_per_step is not None:
            return math.ceil(epochs * self.epoch_rows / self.rows_per_step)
        while len(self._fill_ends) < epochs:
            self._epoch_packs(len(self._fill_ends))
        return math.ceil(self._fill_ends[epochs - 1] / self.packs_per_step) if epochs else 0

    def step(self, k: int) -> list[Entry]:
        """All rows of step k in stream order; with full packs, the usable ones in the order of the packs."""
        if self.rows_per_step is not None:
            return _entries(*self._stream(k * self.rows_per_step, (k + 1) * self.rows_per_step))
        return [entry for pack in self.packs(k, world=1, rank=0) for entry in pack]

    def packs(self, k: int, *, world: int, rank: int) -> list[list[Entry]]:
        """The packs of one rank in step k: equally many on every rank, balanced by tokens, each within the budget.

        Every usable row of the step is in exactly one pack of one rank. A pack is empty where the step has fewer
        usable rows than packs.
        """
        assert 0 <= rank < world, (rank, world)
        return self.all_packs(k, world=world)[rank::world]

    def all_packs(self, k: int, *, world: int) -> list[list[Entry]]:
        """The packs of all ranks in step k, of which rank r has every `world`-th one from the r-th on."""
        assert k >= 0, k
        if self.rows_per_step is None:
            if self.packs_per_step % world:
                raise UserError(
                    f"data.packs_per_step={self.packs_per_step} cannot be shared by {world} processes: "
                    f"expected a multiple, data.packs_per_step={math.ceil(self.packs_per_step / world) * world}"
                )
            return self._full_packs(k * self.packs_per_step, (k + 1) * self.packs_per_step)
        return self._balance([entry for entry in self.step(k) if self.lengths[entry[0]]], world)

    def _shuffle(self, source: int, epoch: int) -> np.ndarray:
        """Return the rows of a source (counted from its first) in the order of an epoch."""
        salt = np.array([row_seed(self.seed, epoch, "")], dtype=np.uint64)
        order = np.argsort(_mix(self._keys[source] ^ salt), kind="stable")
        return order.astype(np.uint32)  # half the memory of what argsort returns

    def _stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs at positions [start, stop) of the stream."""
        positions = np.arange(start, stop)
        sources, counts = _locate(self._mux, positions)
        rows, epochs = np.empty_like(positions), np.empty_like(positions)
        for i, source in enumerate(self.sources):
            mine = np.flatnonzero(sources == i)
            epochs[mine], place = np.divmod(counts[mine], len(source.rows))
            for epoch in np.unique(epochs[mine]):
                now = epochs[mine] == epoch
                rows[mine[now]] = self._starts[i] + self._order(i, int(epoch))[place[now]]
        return rows, epochs

    def _balance(self, entries: list[Entry], world: int) -> list[list[Entry]]:
        """Fewest packs per rank for which longest-processing-time-first (Graham 1969) stays within the budget.

        Heaviest packs first, so that ranks work on packs of like weight at the same time.
        """
        lengths = [int(self.lengths[row]) for row, _ in entries]
        longest_first = sorted(range(len(entries)), key=lambda i: -lengths[i])  # stable: stream order between equals
        per_rank = max(1, math.ceil(sum(lengths) / (self.token_budget * world)))
        while True:
            loads = [(0, pack) for pack in range(per_rank * world)]
            packs: list[list[int]] = [[] for _ in loads]
            for i in longest_first:
                load, pack = loads[0]
                packs[pack].append(i)
                heapq.heapreplace(loads, (load + lengths[i], pack))
            if max(loads)[0] <= self.token_budget:
                order = [pack for _, pack in sorted(loads, key=lambda load: (-load[0], load[1]))]
                return [[entries[i] for i in sorted(packs[pack])] for pack in order]
            per_rank += 1

    def _full_packs(self, start: int, stop: int) -> list[list[Entry]]:
        """Packs [start, stop) of the stream of full packs, epoch after epoch."""
        while not self._fill_ends or self._fill_ends[-1] < stop:
            self._epoch_packs(len(self._fill_ends))
        packs = []
        while start < stop:
            epoch = bisect_right(self._fill_ends, start)
            first = self._fill_ends[epoch - 1] if epoch else 0
            taken = self._epoch_packs(epoch).take(start - first, stop - first)
            packs += taken
            start += len(taken)
        return packs

    def _fill(self, epoch: int) -> _Packs:
        """Fill the packs of one epoch of the stream. Each starts with the row that has waited longest."""
        rows, epochs = self._stream(epoch * self.epoch_rows, (epoch + 1) * self.epoch_rows)
        lengths = self.lengths[rows]
        usable = np.flatnonzero(lengths)
        # A few thousand at a time: as objects, all of them would take five times the memory of the arrays.
        parts = np.array_split(np.stack([usable, lengths[usable]], axis=1), len(usable) // 4096 + 1)
        waiting = (pair for part in parts for pair in part.tolist())
        order, ends = array("q"), array("q", [0])
        pool = list(islice(waiting, POOL))
        while pool:
            chosen = _fullest([length for _, length in pool], self.token_budget)
            order.extend([pool.pop(i)[0] for i in reversed(chosen)][::-1])
            ends.append(len(order))
            pool += islice(waiting, POOL - len(pool))
        if epoch == len(self._fill_ends):
            self._fill_ends.append(len(ends) - 1 + (self._fill_ends[-1] if epoch else 0))
        places = np.frombuffer(order, dtype=np.int64)
        return _Packs(rows[places], epochs[places], np.frombuffer(ends, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class _Packs:
    """Packs of rows, in columns: pack p has the places `ends[p]` to `ends[p + 1]`."""

    rows: np.ndarray
    epochs: np.ndarray
    ends: np.ndarray

    def take(self, start: int, stop: int) -> list[list[Entry]]:
        """Return packs [start, stop), as far as there are any."""
        bounds = [slice(*self.ends[p : p + 2]) for p in range(start, min(stop, len(self.ends) - 1))]
        return [_entries(self.rows[one], self.epochs[one]) for one in bounds]


def _entries(rows: np.ndarray, epochs: np.ndarray) -> list[Entry]:
    return list(zip(rows.tolist(), epochs.tolist(), strict=True))


def _weight(source: Manifest) -> float:
    return len(source.rows) if source.weight is None else source.weight


def _merge(sources: Sequence[Manifest], weights: Sequence[float]) -> int | _Merge:
    """Huffman's tree over the sources' weights, the same for any order of the sources."""
    heap: list[tuple[float, str, int | _Merge]]
    heap = [(weight, s.name, i) for i, (s, weight) in enumerate(zip(sources, weights, strict=True))]
    heapq.heapify(heap)
    while len(heap) > 1:
        light, name, right = heapq.heappop(heap)
        heavy, _, left = heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, name, _Merge(left, right, heavy / (light + heavy))))
    return heap[0][2]


def _fullest(lengths: list[int], budget: int) -> list[int]:
    """Indices of rows, the first one among them, whose lengths add up to the most within the budget.

    Subset sums as the bits of one integer: bit t of reach[i] says that rows 0..i can make t tokens. Later rows are
    looked at only until the budget is met, and taken only where the earlier ones cannot do without them.
    """
    keep = (1 << budget + 1) - 1
    reach = [1 << lengths[0]]
    for length in lengths[1:]:
        if reach[-1] >> budget:
            break
        reach.append((reach[-1] | reach[-1] << length) & keep)
    total = reach[-1].bit_length() - 1
    chosen = []
    for i in range(len(reach) - 1, 0, -1):
        if not reach[i - 1] >> total & 1:
            chosen.append(i)
            total -= lengths[i]
    return [0, *reversed(chosen)]
