"""What several files of these tests share."""

from __future__ import annotations

import pytest

from tests.studies.page_shop import Shop, make_shop


@pytest.fixture(scope="session")
def page_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Made once."""
    return make_shop(tmp_path_factory.mktemp("page"))
