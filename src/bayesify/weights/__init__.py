"""What a weight can be: named, selected, structured. No statistics here."""
