"""What docs/deploying.md offers: Compose, Kubernetes, Helm, backups and releases."""
