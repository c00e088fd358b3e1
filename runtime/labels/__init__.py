"""What says that a picture is synthetic: an XMP note, signed Content Credentials, an invisible mark."""
