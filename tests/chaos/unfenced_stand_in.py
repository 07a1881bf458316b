"""The stand-in engine, and with it, in the process that loads it, a store whose fence is taken out."""

from featurespeed_service.store import leases, records
from featurespeed_service.store.rows import find
from featurespeed_service.store.schema import jobs
from tests.service.stand_in import *  # noqa: F403  (an Engine is a module)

leases._fence = lambda lease: (jobs.c.id == lease.job_id,)
leases.SqlLeaseStore._held = lambda self, connection, lease: find(connection, lease.job_id, lock=True)
leases.SqlLeaseStore.stop_requests = lambda self, held: {}
records.TRANSITIONS["succeeded"] |= {"succeeded"}
