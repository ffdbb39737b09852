"""Training plan: the rows of each step, and how they are divided into packs.

A pack holds the rows of one forward pass. The rows of a step are computed from the step number, the ids and lengths of
all rows, the settings and the seed. No process keeps a position, so a resumed run needs no saved state. Runs with any
number of ranks see the same rows at the same step. With a fixed number of rows per step, lengths have no influence, so
all systems that a study compares also see the same rows, even if they need different numbers of tokens.
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
from auris.errors import UserError, count, shorten

# Number of rows of the stream among which the rows of the next pack are chosen. With 256 rows, packs are almost full,
# and rows stay close to their random position.
POOL_ROWS = 256

Entry = tuple[int, int]
"""(row number, data epoch of the row: the number of earlier passes over its source)"""


def _mix(x: np.ndarray) -> np.ndarray:
    """Hash uint64 by splitmix64's finaliser (Steele et al. 2014): every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class _Merge:
    """Two streams merged into one stream: round(p * share) of its first p rows are from the left stream.

    A tree of merges defines a stream of many sources. The row at any position can be computed without the rows before.
    """

    left: int | _Merge  # int: index of a source
    right: int | _Merge
    share: float


def _locate(tree: int | _Merge, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the source (n,) of each position (n,) of a merged stream, and how many earlier rows it has (n,)."""
    if isinstance(tree, int):
        return np.full_like(positions, tree), positions
    n_left = np.floor(positions * tree.share + 0.5).astype(np.int64)  # number of earlier rows from the left stream
    is_left = np.floor((positions + 1) * tree.share + 0.5) > n_left
    sources, n_earlier = np.empty_like(positions), np.empty_like(positions)
    for branch, is_chosen, branch_positions in (
        (tree.left, is_left, n_left),
        (tree.right, ~is_left, positions - n_left),
    ):
        sources[is_chosen], n_earlier[is_chosen] = _locate(branch, branch_positions[is_chosen])
    return sources, n_earlier


class Plan:
    """The rows of every step, and their packs.

    The rows form an endless stream. Each source (manifest) is repeated, every time in a new order. Rows are sorted by a
    hash of (row id, seed, epoch), so their order in the manifest has no influence. Sources are merged pairwise, the two
    lightest first (Huffman tree). Among the first p rows of the stream, the number of rows of a source differs from p
    times its share by at most half a row for two sources, and by less than two rows for more. Without weights, shares
    are proportional to the number of rows, and an epoch of `epoch_rows` rows contains every row once.

    With a temperature, or if a source has a cap (`max_per_epoch`), an epoch contains an exact number of rows of each
    source, its quota. The quota is the source's share of the total number of rows, but at most the cap. A cap makes the
    epoch shorter; the other sources do not get more rows. The next epoch continues each source where this epoch
    stopped, so no row is repeated before all rows of its source have been used.

    A row of length 0 is unusable. It keeps its position in the stream but is in no pack, so the positions of all other
    rows do not change.

    Args:
        sources: Manifests with unique names. Either all of them have weights or none has. Rows are numbered
            consecutively over all sources.
        lengths: (rows,) maximum number of tokens of each row; 0: unusable.
        seed: Seed of the row order.
        rows_per_step: Step k is rows [k R, (k+1) R) of the stream, independent of lengths, budget and world size.
            None: a step is `packs_per_step` full packs, filled from the stream within each epoch.
        token_budget: Maximum number of tokens in a pack.
        packs_per_step: Number of packs per step over all ranks; used if rows_per_step is None.
        temperature: Temperature T. Shares are proportional to (number of rows)^(1/T) (Devlin's multilingual BERT;
            Raffel et al. 2020, section 3.5.2). 1 and None: proportional to the number of rows. The larger T, the more
            equal the shares.

    Raises:
        UserError: A setting is invalid, or a row is longer than the budget.
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
        self._quotas = self._compute_quotas()
        self._keys = [row_keys(source.rows) for source in self.sources]
        self._merge_tree = _merge(self.sources, self._quotas or [_weight(source) for source in self.sources])
        self._order = lru_cache(2 * len(self.sources))(self._shuffle)  # a step may span two epochs of each source
        self._epoch_packs = lru_cache(2)(self._fill_packs)
        self._pack_ends: list[int] = []  # entry e: number of packs in epochs 0 to e

    def _check(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise UserError(f"data sources {names}: expected at least one source, each with a different name")
        for source in self.sources:
            if not len(source.rows):
                raise UserError(f"source {source.name} has no rows")
        if len({source.weight is None for source in self.sources}) > 1:
            raise UserError(f"data sources {names}: expected a weight for every source or for none")
        self._check_temperature()
        assert self.lengths.shape == (self._starts[-1],) and self.lengths.min() >= 0, (self.lengths.shape, self._starts)
        if not self.lengths.any():
            raise UserError(f"none of the {count(len(self.lengths), 'row')} of {names} is usable")
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > self.token_budget:
            number = bisect_right(self._starts, longest) - 1
            source = self.sources[number]
            row = source.rows[longest - self._starts[number]]
            raise UserError(
                f"rows longer than data.token_budget={self.token_budget}: "
                f"{np.count_nonzero(self.lengths > self.token_budget)}; the longest, {shorten(row.id)} of "
                f"{source.name}, has {self.lengths[longest]} tokens: set "
                f"data.token_budget={self.lengths[longest]} or more, or data.long_audio=skip to leave these rows out"
            )

    def _check_temperature(self) -> None:
        if self.temperature is None:
            return
        setting = f"data.temperature={self.temperature}"
        if len(self.sources) < 2:
            raise UserError(
                f"{setting} has no effect on a single source: set it to null, or list the parts to balance, such as "
                "data.train=[{path: a.jsonl, tasks: [asr]}, {path: a.jsonl, tasks: [aac]}]"
            )
        if self.sources[0].weight is not None:
            raise UserError(f"{setting} has no effect if sources have weights: remove the temperature or the weights")

    def _compute_quotas(self) -> list[int] | None:
        """Return the number of rows of each source in an epoch, or None without temperature and caps."""
        caps = [source.max_per_epoch for source in self.sources]
        if self.temperature is None and all(cap is None for cap in caps):
            return None
        shares = np.array([_weight(source) for source in self.sources]) ** (1 / (self.temperature or 1))
        quotas = np.rint(shares / shares.sum() * len(self.lengths)).astype(int).clip(min=1).tolist()
        for source, cap, quota in zip(self.sources, caps, quotas, strict=True):
            if cap is not None and not 1 <= cap < quota:
                raise UserError(
                    f"source {source.name}: max_per_epoch={cap}, expected at least 1 and less than {quota}, the number "
                    "of its rows in an epoch without this limit"
                )
        return [quota if cap is None else cap for quota, cap in zip(quotas, caps, strict=True)]

    @property
    def epoch_rows(self) -> int:
        """Number of rows in one epoch of the stream, including unusable rows: all rows, or the sum of the quotas."""
        return sum(self._quotas) if self._quotas else len(self.lengths)

    def n_steps(self, epochs: int) -> int:
        """Return the number of steps in `epochs` epochs; the last step may reach into the next epoch."""
        if self.rows_per_step is not None:
            return math.ceil(epochs * self.epoch_rows / self.rows_per_step)
        while len(self._pack_ends) < epochs:
            self._epoch_packs(len(self._pack_ends))  # appends to `_pack_ends`
        return math.ceil(self._pack_ends[epochs - 1] / self.packs_per_step) if epochs else 0

    def step(self, k: int) -> list[Entry]:
        """Return all rows of step k in stream order. Steps of full packs contain only usable rows, in pack order."""
        if self.rows_per_step is not None:
            return _entries(*self._stream(k * self.rows_per_step, (k + 1) * self.rows_per_step))
        return [entry for pack in self.packs(k, world=1, rank=0) for entry in pack]

    def packs(self, k: int, *, world: int, rank: int) -> list[list[Entry]]:
        """Return the packs of one rank in step k, where `world` is the number of ranks.

        Every rank has the same number of packs. They are within the budget and have similar numbers of tokens. Every
        usable row of the step is in exactly one pack of one rank. Some packs are empty if the step has fewer usable
        rows than packs.
        """
        assert 0 <= rank < world, (rank, world)
        return self.all_packs(k, world=world)[rank::world]

    def all_packs(self, k: int, *, world: int) -> list[list[Entry]]:
        """Return the packs of all ranks in step k; rank r has packs r, r + world, r + 2 world, ..."""
        assert k >= 0, k
        if self.rows_per_step is None:
            if self.packs_per_step % world:
                raise UserError(
                    f"data.packs_per_step={self.packs_per_step} is not a multiple of the {world} ranks: "
                    f"set data.packs_per_step={math.ceil(self.packs_per_step / world) * world}"
                )
            return self._full_packs(k * self.packs_per_step, (k + 1) * self.packs_per_step)
        return self._balance([entry for entry in self.step(k) if self.lengths[entry[0]]], world)

    def _shuffle(self, source: int, epoch: int) -> np.ndarray:
        """Return the row numbers of a source (from 0 within the source) in the order of an epoch."""
        salt = np.array([row_seed(self.seed, epoch, "")], dtype=np.uint64)
        order = np.argsort(_mix(self._keys[source] ^ salt), kind="stable")
        return order.astype(np.uint32)  # argsort returns 64-bit numbers, which take twice the memory

    def _stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the row number and epoch at each of the positions [start, stop) of the stream."""
        positions = np.arange(start, stop)
        sources, n_earlier = _locate(self._merge_tree, positions)
        rows, epochs = np.empty_like(positions), np.empty_like(positions)
        for i, source in enumerate(self.sources):
            indices = np.flatnonzero(sources == i)
            epochs[indices], order_positions = np.divmod(n_earlier[indices], len(source.rows))
            for epoch in np.unique(epochs[indices]):
                in_epoch = epochs[indices] == epoch
                rows[indices[in_epoch]] = self._starts[i] + self._order(i, int(epoch))[order_positions[in_epoch]]
        return rows, epochs

    def _balance(self, entries: list[Entry], world: int) -> list[list[Entry]]:
        """Divide rows into packs of similar length by longest-processing-time-first scheduling (Graham 1969).

        The number of packs per rank is the smallest for which all packs are within the budget. Packs are sorted by
        length, longest first, so that ranks work on packs of similar length at the same time.
        """
        lengths = [int(self.lengths[row]) for row, _ in entries]
        # The sort is stable: rows of equal length stay in stream order.
        longest_first = sorted(range(len(entries)), key=lambda i: -lengths[i])
        packs_per_rank = max(1, math.ceil(sum(lengths) / (self.token_budget * world)))
        while True:
            loads = [(0, pack) for pack in range(packs_per_rank * world)]
            packs: list[list[int]] = [[] for _ in loads]
            for i in longest_first:
                load, pack = loads[0]
                packs[pack].append(i)
                heapq.heapreplace(loads, (load + lengths[i], pack))
            if max(loads)[0] <= self.token_budget:
                order = [pack for _, pack in sorted(loads, key=lambda load: (-load[0], load[1]))]
                return [[entries[i] for i in sorted(packs[pack])] for pack in order]
            packs_per_rank += 1

    def _full_packs(self, start: int, stop: int) -> list[list[Entry]]:
        """Return packs [start, stop) of the stream of full packs, which are filled epoch by epoch."""
        while not self._pack_ends or self._pack_ends[-1] < stop:
            self._epoch_packs(len(self._pack_ends))
        packs: list[list[Entry]] = []
        while start < stop:
            epoch = bisect_right(self._pack_ends, start)
            first = self._pack_ends[epoch - 1] if epoch else 0
            packs_of_epoch = self._epoch_packs(epoch).take(start - first, stop - first)
            packs += packs_of_epoch
            start += len(packs_of_epoch)
        return packs

    def _fill_packs(self, epoch: int) -> _Packs:
        """Fill the packs of one epoch of the stream. Each pack starts with the first remaining row of the stream."""
        rows, epochs = self._stream(epoch * self.epoch_rows, (epoch + 1) * self.epoch_rows)
        lengths = self.lengths[rows]
        usable = np.flatnonzero(lengths)
        # Rows are converted to Python objects a few thousand at a time; all at once would take five times the memory.
        chunks = np.array_split(np.stack([usable, lengths[usable]], axis=1), len(usable) // 4096 + 1)
        remaining = (pair for chunk in chunks for pair in chunk.tolist())  # (position in the epoch, length)
        order, ends = array("q"), array("q", [0])
        pool = list(islice(remaining, POOL_ROWS))
        while pool:
            indices = _choose_fullest([length for _, length in pool], self.token_budget)
            order.extend([pool.pop(i)[0] for i in reversed(indices)][::-1])
            ends.append(len(order))
            pool += islice(remaining, POOL_ROWS - len(pool))
        if epoch == len(self._pack_ends):
            self._pack_ends.append(len(ends) - 1 + (self._pack_ends[-1] if epoch else 0))
        positions = np.frombuffer(order, dtype=np.int64)
        return _Packs(rows[positions], epochs[positions], np.frombuffer(ends, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class _Packs:
    """Packs of one epoch. Pack p consists of the entries [ends[p], ends[p + 1]) of `rows` and `epochs`."""

    rows: np.ndarray
    epochs: np.ndarray
    ends: np.ndarray

    def take(self, start: int, stop: int) -> list[list[Entry]]:
        """Return the packs [start, stop), or fewer if the epoch ends before `stop`."""
        bounds = [slice(*self.ends[p : p + 2]) for p in range(start, min(stop, len(self.ends) - 1))]
        return [_entries(self.rows[bound], self.epochs[bound]) for bound in bounds]


def _entries(rows: np.ndarray, epochs: np.ndarray) -> list[Entry]:
    return list(zip(rows.tolist(), epochs.tolist(), strict=True))


def _weight(source: Manifest) -> float:
    return len(source.rows) if source.weight is None else source.weight


def _merge(sources: Sequence[Manifest], weights: Sequence[float]) -> int | _Merge:
    """Build the Huffman tree over the sources' weights. The order of the sources does not affect the stream."""
    heap: list[tuple[float, str, int | _Merge]]
    heap = [(weight, s.name, i) for i, (s, weight) in enumerate(zip(sources, weights, strict=True))]
    heapq.heapify(heap)
    while len(heap) > 1:
        light, name, right = heapq.heappop(heap)
        heavy, _, left = heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, name, _Merge(left, right, heavy / (light + heavy))))
    return heap[0][2]


def _choose_fullest(lengths: list[int], budget: int) -> list[int]:
    """Return the indices of rows that fill the budget best. The first row is always among them.

    Subset sums are the bits of one integer: bit t of reach[i] is set if a subset of rows 0 to i that contains row 0 has
    t tokens in total. Once bit `budget` is set in reach[i], rows after i are not used. A later row is used only if
    earlier rows cannot give the same total.
    """
    within_budget = (1 << budget + 1) - 1
    reach = [1 << lengths[0]]
    for length in lengths[1:]:
        if reach[-1] >> budget:
            break
        reach.append((reach[-1] | reach[-1] << length) & within_budget)
    total = reach[-1].bit_length() - 1
    indices = []
    for i in range(len(reach) - 1, 0, -1):
        if not reach[i - 1] >> total & 1:
            indices.append(i)
            total -= lengths[i]
    return [0, *reversed(indices)]
