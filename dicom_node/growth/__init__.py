"""Our earlier report and this CT -> what became of each nodule. Pure: no network, no database, no torch."""
