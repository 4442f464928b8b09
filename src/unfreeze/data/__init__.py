"""Files in; tables and pixels out. No torch."""
