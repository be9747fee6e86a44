"""From shards to batches. ``shards`` is the only module that imports h5py."""
