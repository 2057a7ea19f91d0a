"""Whose publishes come next: a queue in which those who flood take turns with everybody else.

Fair queueing as Demers, Keshav and Shenker have it (SIGCOMM 1989): the next submission is the one whose last byte would
leave first, were all flows served at once, byte by byte. So a flow keeps its order, and a small submission of one that
has nothing waiting is soon at the front, however much others have queued. Knows no time and no I/O.
"""

from heapq import heappop, heappush

from trisync.storage.log import Submission

FEW = 32
"""A flow is small while all that it has waiting is one submission of at most so many publishes."""


class FairQueue:
    """Submissions that wait for a batch, and those of the batch under way."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all submissions without verdicts, waiting or in a batch: see Submission.size."""
        self.arrived = 0
        """How many submissions have ever been pushed."""
        self._waiting: list[tuple[int, int, Submission]] = []  # a heap, by place, then by arrival
        self._few_came_alone = False  # whether the last batch was of small flows alone, while others waited
        self._flows = 0  # how many have something waiting
        self._now = 0  # how many bytes a flow has been served that always had something waiting
        self._over = 0  # bytes served beyond that: fewer than one for each flow
        self._settled_below = 0  # all submissions that arrived earlier than this one are settled
        self._settled_early: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def push(self, submission: Submission) -> None:
        """Queue a submission behind those of its own flow."""
        flow = submission.flow
        flow.place = max(self._now, flow.place) + submission.size
        self._flows += not flow.waiting
        flow.waiting += 1
        flow.unsettled += submission.size
        self.size += submission.size
        submission.arrival = self.arrived
        self.arrived += 1
        heappush(self._waiting, (flow.place, submission.arrival, submission))

    def take(self, count_max: int, bytes_max: int) -> list[Submission]:
        """The next batch, which must be settled before the next is taken; it may exceed a bound by one submission.

        Where several flows wait, it has half as many publishes. Where small flows are next, they have a batch of their
        own, though never twice in a row: whoever publishes little need not wait until a flood is stored with it.
        """
        if self._flows > 1:
            count_max = (count_max + 1) // 2
        batch: list[Submission] = []
        count = size = 0
        for_few = bool(self) and not self._few_came_alone and self._few_are_next()
        self._few_came_alone = False
        while self._waiting and count < count_max and size < bytes_max:
            if for_few and not self._few_are_next():
                self._few_came_alone = True
                break
            place, _, submission = heappop(self._waiting)
            batch.append(submission)
            submission.flow.waiting -= 1
            if self._waiting:
                gained, self._over = divmod(self._over + submission.size, self._flows)
                self._now += gained
            else:
                self._now, self._over = max(self._now, place), 0
            self._flows -= not submission.flow.waiting
            count += len(submission.items)
            size += submission.size
        return batch

    def _few_are_next(self) -> bool:
        """Whether the next submission is of a small flow."""
        _, _, submission = self._waiting[0]
        return len(submission.items) <= FEW and submission.flow.waiting == 1

    def settle(self, batch: list[Submission]) -> None:
        """Forget a batch that has its verdicts."""
        for submission in batch:
            self.size -= submission.size
            submission.flow.unsettled -= submission.size
            self._settled_early.add(submission.arrival)
        while self._settled_below in self._settled_early:
            self._settled_early.remove(self._settled_below)
            self._settled_below += 1

    def has_settled(self, arrived: int) -> bool:
        """Whether the first so many submissions that ever arrived are all settled."""
        return self._settled_below >= arrived
