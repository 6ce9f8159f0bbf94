"""Published policies and KubeArmor's own behaviour cases, enforced for real."""
