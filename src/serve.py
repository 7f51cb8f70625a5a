"""A page that searches an index by images, on this machine: `python -m src.serve index=INDEX`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

from importlib.util import find_spec
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.running import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="serve")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Take the port, load the network, say where the page is, and serve it until a signal comes."""
    from src import settings

    settings.check(cli.settled(config), settings.SERVE)
    if not (find_spec("fastapi") and find_spec("uvicorn")):
        raise ImportError("src.serve needs the packages fastapi and uvicorn: pip install '.[serve]'")

    from src.serving.server import Server, listen

    with listen(config.port) as socket:
        from src.indexing.index import Index
        from src.indexing.searching import load_network
        from src.running.hardware import return_memory
        from src.serving.app import create
        from src.serving.guard import HOST
        from src.serving.searcher import Searcher

        return_memory()
        index, port = Index(Path(config.index).expanduser()), socket.getsockname()[1]
        searcher = Searcher(index, load_network(index, config.run, config.accelerator))
        server = Server(create(searcher, port, config.k))
        signals.instead(server.stop)
        print(f"{len(index):,} images can be searched at http://{HOST}:{port} until Ctrl-C", flush=True)
        try:
            server.run([socket])
        finally:
            searcher.close()
    signals.leave()


if __name__ == "__main__":
    cli.run(main)
