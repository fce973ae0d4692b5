"""Faults of backup and recovery that tests play; `backup_faults` plays others, and runs these with --tests.

One line per fault and what must come of it: never a wrong result without a word.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """A fault, and the test that plays it."""

    fault: str
    test: str


_PG = "ops/test_postgres_backup.py::test_"
_MONGO = "ops/test_mongo_backup.py::test_"
_REDIS = "ops/test_redis_backup.py::test_"
_AOF = "ops/test_redis_aof.py::test_"
_FILES = "ops/test_files_backup.py::test_"
_LAKE = "ops/test_lake_backup.py::test_"
_CATALOGUE = "ops/test_catalogue.py::test_"
_SWEEP = "ops/test_sweep_backups.py::test_"
_VAULT = "stores/test_vault.py::test_"
_EVIDENCE = "ops/test_evidence.py::test_"

TESTS = (
    Scenario("a target past the end of the log", f"{_PG}moments_that_cannot_be_had_are_refused_with_the_reason"),
    Scenario("an outage at any read of a restore", f"{_PG}an_outage_while_restoring_is_loud_at_every_read"),
    Scenario("a hole in the log", f"{_PG}a_hole_in_the_log_is_never_a_short_recovery_and_asks_for_a_full_backup"),
    Scenario("a segment pushed with other bytes", f"{_PG}archive_command_never_replaces_and_small_objects_are_merged"),
    Scenario("restore_command in an outage", f"{_PG}a_file_that_is_not_there_is_told_from_one_that_cannot_be_had"),
    Scenario("slot lost, timelines switched", f"{_PG}a_lost_machine_comes_back_from_the_bucket_and_its_log_goes_on"),
    Scenario("a flipped byte, PostgreSQL", f"{_PG}a_flipped_byte_of_any_stored_object_is_found_before_a_server_starts"),
    Scenario("a target that cannot be exact, MongoDB", f"{_MONGO}what_cannot_be_exact_is_refused"),
    Scenario("an oplog that rolled over", f"{_MONGO}a_log_that_rolled_over_is_a_gap_told_aloud_and_not_crossed"),
    Scenario("a server restored meanwhile", f"{_MONGO}a_restored_server_begins_another_history"),
    Scenario("a collection renamed meanwhile", f"{_MONGO}two_backups_at_once_and_a_rename_are_refused"),
    Scenario("a flipped byte, MongoDB", f"{_MONGO}a_flipped_byte_anywhere_is_found_before_anything_is_written"),
    Scenario("MongoDB killed while it is archived", f"{_MONGO}the_archive_goes_on_behind_a_killed_server"),
    Scenario("MongoDB lost altogether", f"{_MONGO}of_a_server_that_is_gone_seconds_are_lost_at_most"),
    Scenario("oplog archived late or twice", f"{_MONGO}what_is_archived_late_or_twice_is_put_in_its_place"),
    Scenario("slots on their way", f"{_REDIS}slots_on_their_way_are_refused"),
    Scenario("masters changed meanwhile", f"{_REDIS}a_change_of_masters_meanwhile_is_refused"),
    Scenario("a wrong slot map", f"{_REDIS}a_wrong_map_fails_the_proof"),
    Scenario("a flipped byte, Redis", f"{_REDIS}a_flipped_byte_is_found_before_a_server_starts"),
    Scenario("Redis killed while it sends", f"{_REDIS}a_server_that_dies_while_it_sends_leaves_no_backup"),
    Scenario("a wrong password", f"{_REDIS}a_wrong_password_is_said_and_not_shown"),
    Scenario("rewrites while files are copied", f"{_AOF}rewrites_and_writes_meanwhile_cut_it_between_two_commands"),
    Scenario("a rewrite without end", f"{_AOF}a_rewrite_without_end_is_refused"),
    Scenario("append-only files elsewhere, or off", f"{_AOF}what_is_elsewhere_or_off_is_said"),
    Scenario("an append-only file cut at its source", f"{_AOF}a_cut_file_does_not_start_and_fails_the_proof"),
    Scenario("a file that never stands still", f"{_FILES}a_file_that_changes_while_it_is_read_is_read_again_or_named"),
    Scenario("paths that lead outside", f"{_FILES}nothing_is_written_outside_of_the_directory"),
    Scenario("a spoiled shared part", f"{_FILES}a_spoiled_part_is_found_and_stored_anew_by_the_next"),
    Scenario("a lost lake bucket", f"{_LAKE}a_lost_bucket_comes_back_to_its_catalog"),
    Scenario("a lake object that is nowhere", f"{_LAKE}an_object_that_is_nowhere_refuses_all"),
    Scenario("a half-uploaded backup", f"{_CATALOGUE}a_half_uploaded_backup_is_not_there"),
    Scenario("one record lost", f"{_CATALOGUE}a_lost_key_is_said_and_one_lost_record_hides_no_other"),
    Scenario("the holder of a lease killed", f"{_CATALOGUE}the_lease_of_a_killed_process_is_free_soon"),
    Scenario("a holder thought dead", f"{_CATALOGUE}who_was_thought_dead_publishes_nothing"),
    Scenario("a clock that ran ahead, at retention", f"{_SWEEP}a_machine_whose_clock_ran_ahead_destroys_nothing"),
    Scenario("retention killed at every call", f"{_SWEEP}killed_at_every_call_and_run_again_it_ends_the_same"),
    Scenario("retention beside a backup", f"{_SWEEP}a_source_that_is_being_backed_up_is_left_alone"),
    Scenario("an older object of the same name", f"{_VAULT}an_older_object_of_the_same_name_is_not_taken"),
    Scenario("frames left out or exchanged", f"{_VAULT}frames_cannot_be_left_out_or_exchanged"),
    Scenario("evidence taken out", f"{_EVIDENCE}a_record_taken_out_is_missed"),
)
