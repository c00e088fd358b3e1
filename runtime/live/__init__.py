"""Frame after frame: reenactment, its layout, the live path, the webcam, de-identification."""
