"""Check what `dstools export` wrote: against its export.json, and against its source."""
