"""What others publish results in: leaderboards of the hub, mteb, and immich's table. The core reads without them."""
