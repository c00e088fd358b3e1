"""The networks: those that are trained, and the frozen ones that teach and judge them."""
