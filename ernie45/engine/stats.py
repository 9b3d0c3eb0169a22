"""What an engine tells about itself.

Knows nothing about metrics libraries or about how the numbers come about.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerStats:
    """Gauges of now, and counters since the start (those of preemptions, queried and hit tokens, encoded and found units).

    num_hit_tokens        prompt tokens that were not computed, whichever tier had them.
    num_host_hit_tokens, num_disk_hit_tokens  those of them that came from host memory, and from disk.
    num_encoded_units, num_encoder_hits  images and two-frame units: encoded, and found among those encoded before.
    num_running_tokens    tokens of running requests, prompts and answers.
    num_drafts, num_draft_tokens, num_accepted_tokens  of speculation: drafts checked, guesses in them,
                          and guesses that came true.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    num_cached_pages: int
    num_preemptions: int
    num_queried_tokens: int
    num_hit_tokens: int
    num_host_hit_tokens: int = 0
    num_disk_hit_tokens: int = 0
    num_host_pages: int = 0
    num_disk_pages: int = 0
    num_encoded_units: int = 0
    num_encoder_hits: int = 0
    num_running_tokens: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
