"""Image encoders: a dense feature map on a known grid."""
