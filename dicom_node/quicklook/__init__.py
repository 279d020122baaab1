"""CT, SEG and SR as anybody else would have them -> montages and one HTML page to scroll through.

Findings are read from the objects alone: what the page shows is what the objects say.
"""
