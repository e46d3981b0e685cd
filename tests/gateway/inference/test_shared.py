"""Who goes on with a shared stream, and what becomes of it when nobody does."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import pytest

from apps.gateway.inference.streams.shared import MOMENT, Reader, Shared
from apps.gateway.inference.streams.stream import Interrupted
from apps.gateway.limits.admission import Overspent
from apps.gateway.limits.budgets import Claim, purses
from citadel.caller import Budget


def shared_by(*settled: bool, most: int = 100, unclaimed: tuple[str, ...] = ()) -> tuple[Shared, list[Any], Any]:
    """A stream of so many clients, the first its owner, some of whom are settled and about to leave; its keeper. All
    but the last have something `unclaimed`.
    """
    exchanges = [
        SimpleNamespace(settled=one, unclaimed=lambda _: unclaimed, pays_out_of=lambda _: False) for one in settled
    ]
    exchanges[-1].unclaimed = lambda _: ()
    stream: Any = SimpleNamespace(
        next=AsyncMock(side_effect=[b"a", b"bb", b"ccc", b""]), close=Mock(), parser=SimpleNamespace(finished=True)
    )
    keeper = Mock()
    return Shared(stream, exchanges[0], keeper, most), exchanges, keeper  # type: ignore[arg-type]


@pytest.mark.parametrize(("settled", "heir"), [([False], 1), ([True, False], 2), ([True], None), ([True, True], None)])
def test_a_call_goes_to_none_who_is_about_to_leave(settled: list[bool], heir: int | None) -> None:
    """He would leave it to nobody, and those who wait for it would wait for ever."""
    shared, exchanges, keeper = shared_by(False, *settled)
    readers = [shared.join(exchange) for exchange in exchanges]
    readers[0].close()
    if heir is None:
        keeper.hand_over.assert_not_called()
        keeper.stream_over.assert_called_once_with(exchanges[0], shared.stream, None)
    else:
        keeper.hand_over.assert_called_once_with(exchanges[0], exchanges[heir], shared.stream)
        keeper.stream_over.assert_not_called()
    for reader in readers[1:]:
        reader.close()
    keeper.stream_over.assert_called_once()


def test_a_call_goes_to_one_who_has_claimed_what_it_may_cost() -> None:
    shared, exchanges, keeper = shared_by(False, False, False, unclaimed=("purse",))
    shared.join(exchanges[1])
    owner = shared.join(exchanges[0])
    shared.join(exchanges[2])
    owner.close()
    keeper.hand_over.assert_called_once_with(exchanges[0], exchanges[2], shared.stream)


async def test_a_call_that_nobody_can_pay_breaks_off() -> None:
    shared, exchanges, keeper = shared_by(False, False, False, unclaimed=("purse",))
    shared.stream.parser.finished = False
    owner, other = shared.join(exchanges[0]), shared.join(exchanges[1])
    assert await owner.next() == b"a"
    owner.close()
    keeper.hand_over.assert_not_called()
    keeper.stream_over.assert_called_once_with(exchanges[0], shared.stream, None)
    assert await other.next() == b"a", "what had come"
    with pytest.raises(Interrupted, match="budget"):
        await other.next()
    assert not other.is_at_end


async def test_who_can_pay_no_more_gets_what_had_come_and_hears_why() -> None:
    shared, exchanges, keeper = shared_by(False, False, False)
    exchanges[1].pays_out_of = lambda empty: empty is purse
    owner, same, other = map(shared.join, exchanges)
    assert [await other.next(), await other.next()] == [b"a", b"bb"]
    [purse] = purses((Budget(1, "key", "total", 5, None),), date(2026, 1, 1))
    owner.stop(Claim(purse, 6))
    keeper.hand_over.assert_called_once_with(exchanges[0], exchanges[2], shared.stream)
    assert [await other.next(), await other.next()] == [b"ccc", b""], "who pays from another goes on"
    assert await owner.next() == b"abbccc"
    with pytest.raises(Overspent):
        await owner.next()
    assert await same.next() == b"abbccc", "what another pays"


async def test_each_gets_all_at_its_own_pace() -> None:
    shared, exchanges, keeper = shared_by(False, False, False)
    fast, slow, late = map(shared.join, exchanges)
    assert [await fast.next(), await fast.next()] == [b"a", b"bb"]
    assert await slow.next() == b"abb", "what has come since"
    third = await asyncio.gather(fast.next(), slow.next())
    assert third == [b"ccc"] * 2
    assert await late.next() == b"abbccc"
    assert [await reader.next() for reader in (fast, slow, late)] == [b""] * 3
    keeper.stream_over.assert_called_once_with(exchanges[0], shared.stream, b"abbccc")


async def test_who_is_about_to_miss_something_gets_a_moment() -> None:
    """He has joined, and other work of the worker's comes before his first turn."""
    shared, exchanges, _ = shared_by(False, False, most=2)
    fast, late = map(shared.join, exchanges)

    async def read_all(reader: Reader) -> bytes:
        return b"".join([piece async for piece in pieces_of(reader)])

    async def begin_late() -> bytes:
        for _ in range(20):
            await asyncio.sleep(0)
        return await read_all(late)

    assert await asyncio.gather(read_all(fast), begin_late()) == [b"abbccc"] * 2


async def test_who_never_reads_costs_the_others_one_moment() -> None:
    shared, exchanges, _ = shared_by(False, False, most=2)
    fast, blocked = map(shared.join, exchanges)
    assert await fast.next() == b"a"
    with patch.object(asyncio, "sleep", AsyncMock()) as sleep:
        assert [piece async for piece in pieces_of(fast)] == [b"bb", b"ccc"]
    assert sum(call.args[0] for call in sleep.call_args_list) == pytest.approx(MOMENT)
    with pytest.raises(Interrupted):
        await blocked.next()


async def test_who_has_left_costs_nobody_anything_more() -> None:
    shared, exchanges, _ = shared_by(False, False, most=2)
    fast, late = map(shared.join, exchanges)
    assert [await fast.next(), await fast.next()] == [b"a", b"bb"]
    looks = []

    async def leaves(seconds: float) -> None:
        looks.append(seconds)
        late.close()

    with patch.object(asyncio, "sleep", leaves):
        assert await fast.next() == b"ccc"
    assert len(looks) == 1


async def pieces_of(reader: Reader) -> AsyncIterator[bytes]:
    """All that comes from now on."""
    while piece := await reader.next():
        yield piece
