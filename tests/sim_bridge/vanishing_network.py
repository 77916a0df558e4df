"""A network between robot and server that can stop carrying anything without a word."""

import socket
import threading


class VanishingNetwork:
    """Forwards TCP connections to `target`; after `vanish` those that exist stay open and carry nothing."""

    def __init__(self, target):
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._generation = 0
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def vanish(self):
        self._generation += 1

    def close(self):
        for each in self._sockets:
            each.close()

    def _accept(self):
        while True:
            try:
                robot, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [robot, server]
            for source, sink in ((robot, server), (server, robot)):
                threading.Thread(target=self._carry, args=(source, sink, self._generation), daemon=True).start()

    def _carry(self, source, sink, generation):
        try:
            while data := source.recv(1 << 16):
                if generation == self._generation:
                    sink.sendall(data)
        except OSError:
            pass
