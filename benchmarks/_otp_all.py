"""All contenders, in the order in which they are listed: ours have to be the first."""

# isort: off
from __future__ import annotations

import _otp_ours  # noqa: F401
import _otp_raw  # noqa: F401
import _otp_erlang  # noqa: F401
import _otp_peers  # noqa: F401
import _otp_actors  # noqa: F401
import _otp_pools  # noqa: F401
