"""FID and KID: of the embedded world with its own features, and by the published protocols with Inception's."""

PROTOCOLS = ("pytorch-fid", "clean-fid")
VERSION = "1"
