"""The same primitives in asyncio: the task waits, the event loop runs on."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine
from typing import Any

import coresident as co
import pytest
from conftest import lease_once, run_script, spawn, until, waiting


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def until_async(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_lease_is_awaited_while_the_loop_runs_on(pool: co.DevicePool) -> None:
    async def main() -> list[str]:
        order: list[str] = []

        async def work(name: str) -> None:
            async with pool.lease_async("virtual:0") as lease:
                order.append(f"{name} in")
                assert str(co.current_device()) == str(lease.device)
                await asyncio.sleep(0)
                order.append(f"{name} out")
            assert co.current_device() is None

        await asyncio.gather(*(work(name) for name in "abc"))
        return order

    assert run(main()) == ["a in", "a out", "b in", "b out", "c in", "c out"]


def test_a_task_waits_for_a_thread_and_a_thread_for_a_task(pool: co.DevicePool) -> None:
    lease = spawn(lambda: pool.lease("virtual:0").hand_over()).join()

    async def main() -> None:
        task = asyncio.ensure_future(pool.lease_async("virtual:0"))
        await until_async(lambda: waiting(pool) == 1)
        spawn(lease.release).join()
        with await task:
            waiter = spawn(lambda: pool.lease("virtual:0").hand_over())
            await until_async(lambda: waiting(pool) == 1)
        (await asyncio.to_thread(waiter.join)).release()

    run(main())


def test_the_current_device_is_per_task_and_inherited(pool: co.DevicePool) -> None:
    async def main() -> None:
        async def child() -> str:
            return str(co.current_device())

        async def own(device: str) -> tuple[str, str, str]:
            async with pool.lease_async(device):
                inherited = await asyncio.create_task(child())
                in_thread = await asyncio.to_thread(lambda: str(co.current_device()))
                await asyncio.sleep(0)
                return str(co.current_device()), inherited, in_thread

        both = await asyncio.gather(own("virtual:0"), own("virtual:1"))
        assert both == [("virtual:0",) * 3, ("virtual:1",) * 3]
        assert co.current_device() is None

    run(main())


def test_a_released_lease_is_current_nowhere_even_in_copied_contexts(pool: co.DevicePool) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def late() -> Any:
            before = co.current_device()
            await go.wait()
            return str(before), co.current_device()

        async with pool.lease_async("virtual:0"):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        go.set()
        assert await task == ("virtual:0", None)

    run(main())


def test_an_awaited_lease_times_out_and_leaves_no_trace(pool: co.DevicePool) -> None:
    async def main() -> None:
        lease = spawn(lambda: pool.lease("virtual:0").hand_over()).join()
        with pytest.raises(co.WaitTimeoutError, match="virtual:0, held by"):
            await pool.lease_async("virtual:0", timeout=0.02)
        with pytest.raises(co.WaitTimeoutError):
            await pool.lease_async("virtual:0", timeout=0)
        assert waiting(pool) == 0
        lease.release()
        async with pool.lease_async("virtual:0", timeout=0):
            pass

    run(main())


def test_an_awaited_lease_is_cancelled_by_its_token_or_its_task(pool: co.DevicePool) -> None:
    async def main() -> None:
        token = co.CancelToken()
        with pool.lease("virtual:0").hand_over():
            by_token = asyncio.ensure_future(pool.lease_async("virtual:0", cancel=token))
            by_task = asyncio.ensure_future(pool.lease_async("virtual:0"))
            await until_async(lambda: waiting(pool) == 2)
            spawn(lambda: token.cancel("gone")).join()
            with pytest.raises(co.CancelledError, match="gone"):
                await by_token
            by_task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await by_task
            assert waiting(pool) == 0

    run(main())


def test_a_grant_that_meets_a_cancelled_task_is_given_back(pool: co.DevicePool) -> None:
    async def main() -> None:
        for _ in range(200):
            lease = pool.lease("virtual:0")
            task = asyncio.ensure_future(pool.lease_async("virtual:0"))
            await until_async(lambda: waiting(pool) == 1)
            lease.release()  # granted, but the task has not run yet
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.lease_async("virtual:0", timeout=5):
                pass

    run(main())


def test_a_task_that_takes_its_own_lease_again_is_told(pool: co.DevicePool) -> None:
    async def main() -> None:
        async with pool.lease_async("virtual:0"):
            with pytest.raises(co.DeadlockError, match="which it holds itself"):
                await pool.lease_async("virtual:0")
            with pytest.raises(co.DeadlockError):
                pool.lease("virtual:0")

    run(main())


def test_a_synchronous_wait_also_blocks_the_tasks_of_its_event_loop(pool: co.DevicePool) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def hold() -> None:
            async with pool.lease_async("virtual:0"):
                await release.wait()

        holder = asyncio.create_task(hold(), name="holder")
        await until_async(lambda: pool.status()[0].holder)
        with pytest.raises(co.DeadlockError, match="task 'holder', which cannot run while"):
            pool.lease("virtual:0", timeout=30)
        release.set()
        await holder

    run(main())


def test_a_task_never_waits_for_the_code_below_its_event_loop(pool: co.DevicePool) -> None:
    async def main() -> None:
        with pytest.raises(co.DeadlockError, match="whose code runs only after its event loop"):
            await pool.lease_async("virtual:0")

    with pool.lease("virtual:0"):
        asyncio.run(main())


def test_tasks_in_a_cycle_are_told_and_the_other_one_goes_on(pool: co.DevicePool) -> None:
    async def main() -> list[str]:
        async def chase(mine: str, other: str) -> str:
            async with pool.lease_async(mine):
                await asyncio.sleep(0)
                try:
                    async with pool.lease_async(other):
                        return "served"
                except co.DeadlockError as error:
                    assert len(error.cycle) == 2
                    return "told"

        pairs = (("virtual:0", "virtual:1"), ("virtual:1", "virtual:0"))
        return sorted(await asyncio.gather(*(chase(*pair) for pair in pairs)))

    assert run(main()) == ["served", "told"]


def test_taking_the_last_way_out_of_the_pool_makes_a_deadlock(pool: co.DevicePool) -> None:
    async def main() -> None:
        other = pool.lease("virtual:1").hand_over()
        async with pool.lease_async("virtual:0"):
            asyncio.get_running_loop().call_soon(pool.reconfigure, ["virtual:0"])
            with pytest.raises(co.DeadlockError, match="any of virtual:0"):
                await pool.lease_async()
        other.release()

    run(main())


def test_waiting_without_asyncio_timeouts_in_another_task(pool: co.DevicePool) -> None:
    """``asyncio.wait_for`` wraps in a task of its own before Python 3.12: the guard still works."""

    async def main() -> None:
        lease = await asyncio.wait_for(pool.lease_async("virtual:0"), 5)
        with lease:
            assert str(co.current_device()) == "virtual:0"
            with pytest.raises(co.DeadlockError):
                await pool.lease_async("virtual:0")

    run(main())


def test_the_load_lock_in_asyncio(lock: co.LoadLock) -> None:
    async def main() -> list[str]:
        log: list[str] = []

        async def use(mode: str) -> None:
            async with getattr(lock, f"{mode}_async")():
                log.append(mode)
                await asyncio.sleep(0)

        async with lock.write_async():
            async with lock.read_async(timeout=0):
                pass
            tasks = [asyncio.create_task(use(mode)) for mode in ("write", "read", "read")]
            await until_async(lambda: len(lock.status().waiting) == 3)
        await asyncio.gather(*tasks)
        return log

    assert run(main()) == ["read", "read", "write"]


def test_a_task_reads_inside_the_read_below_its_event_loop(lock: co.LoadLock) -> None:
    async def main() -> None:
        async with lock.read_async(timeout=0):
            pass

    with lock.read():
        writer = spawn(lambda: lock.write().release())
        until(lambda: lock.status().waiting)
        asyncio.run(main())
    writer.join()


def test_a_ticket_is_awaited(workers: co.WorkerPool) -> None:
    async def main() -> None:
        gate = threading.Event()
        ticket = workers.post("virtual:0", gate.wait, 20)
        waiter = asyncio.ensure_future(ticket)
        await asyncio.sleep(0)
        gate.set()
        assert await waiter
        assert await ticket
        assert await workers.post("virtual:0", lambda: None) is None
        done = workers.post("virtual:0", lambda: None)
        done.join(20)
        assert await done is None
        with pytest.raises(ZeroDivisionError):
            await workers.post("virtual:0", lambda: 1 / 0)
        assert (
            sum(await asyncio.gather(*(workers.post("virtual:1", pow, n, 1) for n in range(50))))
            == 1225
        )

    run(main())


def wait_in(loop: asyncio.AbstractEventLoop, pool: co.DevicePool) -> asyncio.Task[co.Lease]:
    """Has a task of the loop wait for the first device; the loop stops while it waits."""

    async def wait() -> co.Lease:
        return await pool.lease_async("virtual:0")

    task = loop.create_task(wait())
    loop.run_until_complete(until_async(lambda: waiting(pool) == 1))
    return task


def test_a_closed_event_loop_loses_no_device(pool: co.DevicePool) -> None:
    lease = spawn(lambda: pool.lease("virtual:0").hand_over()).join()
    loop = asyncio.new_event_loop()
    task = wait_in(loop, pool)
    loop.close()
    lease.release()  # to a task that nobody can wake
    assert spawn(lambda: lease_once(pool, "virtual:0", timeout=5)).join() == "virtual:0"
    task._log_destroy_pending = False  # asyncio would complain of what is meant here


def test_a_forgotten_event_loop_loses_no_device(pool: co.DevicePool) -> None:
    lease = spawn(lambda: pool.lease("virtual:0").hand_over()).join()
    loop = asyncio.new_event_loop()
    task = wait_in(loop, pool)
    task._log_destroy_pending = False
    loop.close()
    del task, loop
    gc.collect()
    assert waiting(pool) == 0
    lease.release()


def test_what_a_thread_awaited_when_it_ended_is_given_up(pool: co.DevicePool) -> None:
    loop = asyncio.new_event_loop()
    lease = pool.lease("virtual:0").hand_over()
    task = spawn(lambda: wait_in(loop, pool)).join()
    until(lambda: waiting(pool) == 0)
    lease.release()
    with pool.lease("virtual:0", timeout=5), pytest.raises(co.CancelledError, match="has ended"):
        loop.run_until_complete(task)
    loop.close()


def test_a_task_may_go_on_in_another_thread(pool: co.DevicePool) -> None:
    loop = asyncio.new_event_loop()
    moved = asyncio.Event()

    async def main() -> None:
        async with pool.lease_async("virtual:0"):
            await moved.wait()
            # It is here by now: what blocks this thread blocks this task.
            async with pool.lease_async("virtual:1"):
                with pytest.raises(co.DeadlockError, match="which it holds itself"):
                    pool.lease("virtual:1")

    async def taken() -> None:
        await until_async(lambda: pool.status()[0].holder)

    task = loop.create_task(main())
    keep = threading.Event()
    began = threading.Event()

    def begin() -> None:
        loop.run_until_complete(taken())
        began.set()
        keep.wait(20)

    first = spawn(begin)
    assert began.wait(20)
    loop.call_soon_threadsafe(moved.set)
    loop.run_until_complete(task)
    keep.set()
    first.join()
    loop.close()
    assert pool.status()[0].holder is None


def test_a_request_is_for_one_async_with_at_a_time(pool: co.DevicePool) -> None:
    async def main() -> None:
        request = pool.lease_async("virtual:0")
        async with request as lease:
            with pytest.raises(RuntimeError, match="make one for each `async with`"):
                async with request:
                    pass
            assert not lease.released
        assert lease.released
        async with request as again:
            assert not again.released
        with pytest.raises(co.WaitTimeoutError):
            with pool.lease("virtual:1").hand_over():
                refused = pool.lease_async("virtual:1", timeout=0)
                async with refused:
                    pass
        async with refused:
            pass

    run(main())


def test_a_thread_that_cannot_start_costs_one_wait_and_no_more() -> None:
    script = """
        import asyncio, threading
        import coresident as co
        pool = co.DevicePool(co.virtual_devices(1))
        start = threading.Thread.start
        def refuse(thread):
            raise RuntimeError("can't start new thread")
        async def main():
            async with pool.lease_async() as lease:
                print("leased")
        threading.Thread.start = refuse
        try:
            asyncio.run(main())
        except RuntimeError as error:
            print(error)
        threading.Thread.start = start
        held = pool.lease().hand_over()
        threading.Timer(0.05, held.release).start()
        asyncio.run(main())
        """
    done = run_script(script)
    assert (done.stdout, done.stderr) == ("can't start new thread\nleased\n", "")


def test_an_async_lease_outside_an_event_loop_is_refused(pool: co.DevicePool) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        pool.lease_async("virtual:0").__await__().send(None)


def test_asyncio_under_stress(pool: co.DevicePool) -> None:
    inside = {"virtual:0": 0, "virtual:1": 0}

    async def work(number: int) -> None:
        for turn in range(20):
            device = (None, "virtual:0", "virtual:1")[(turn + number) % 3]
            async with pool.lease_async(device) as lease:
                name = str(lease.device)
                inside[name] += 1
                assert inside[name] == 1
                await asyncio.sleep(0)
                inside[name] -= 1

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(30)))

    threads = [spawn(lambda: run(main())) for _ in range(3)]
    for thread in threads:
        thread.join()
