"""The asyncio client behind the synchronous client's face, so that one set of laws tests both."""

import asyncio
import threading

from sim_bridge.aio_client import AsyncPolicyClient


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self):
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class BlockingAioClient:
    def __init__(self, address, **settings):
        self._loop = Loop()

        async def make():
            return AsyncPolicyClient(address, **settings)

        self._client = self._loop.run(make())

    def __getattr__(self, name):
        operation = getattr(self._client, name)
        return lambda *arguments, **named: self._loop.run(operation(*arguments, **named))

    def control(self, **settings):
        async def make():
            return await self._client.control(**settings).__aenter__()

        return BlockingAioSession(self._loop, self._loop.run(make()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.run(self._client.close())
        self._loop.close()


class BlockingAioSession:
    def __init__(self, loop, session):
        self._loop, self._session = loop, session

    def __getattr__(self, name):
        async def read():
            return getattr(self._session, name)

        return self._loop.run(read())

    def decide(self, **arguments):
        return self._loop.run(self._session.decide(**arguments))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.run(self._session.close())
