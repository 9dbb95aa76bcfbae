"""All contenders, in the order in which they are listed: ours have to be the first."""

# isort: off
from __future__ import annotations

import _bridge_ours  # noqa: F401
import _bridge_raw  # noqa: F401
import _bridge_death  # noqa: F401
import _bridge_start  # noqa: F401
import _bridge_erlang  # noqa: F401
import _bridge_peers  # noqa: F401
import _bridge_pipes  # noqa: F401
