"""What an assignment demands of a network, computed from the network itself."""
