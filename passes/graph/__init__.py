"""What every pass needs: build nodes, read and bind shapes, move numbers, count FLOPs, refuse with a reason."""
