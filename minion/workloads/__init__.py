"""What runs on this node besides the node itself: containers, systemd units, users' sessions."""
