"""The service: the API, the job store and the dispatcher."""
