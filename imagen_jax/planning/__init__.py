"""What a stage costs: estimates for devices that need not be attached, and measurements on local ones."""
