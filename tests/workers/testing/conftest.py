"""The kit's own tests run as its users' do: on a broker in memory, and on each real one listed."""

from __future__ import annotations

import pytest

from tests.conftest import broker_id
from tests.services import broker_urls


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anywhere" in metafunc.fixturenames:
        real = [
            pytest.param(url, marks=pytest.mark.broker, id=broker_id(url)) for url in broker_urls()
        ]
        metafunc.parametrize("anywhere", [pytest.param(None, id="embedded"), *real])
