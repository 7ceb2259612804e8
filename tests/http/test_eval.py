"""Accuracy through the real API: the demo model answers as the reference implementation does."""

from harness import EVAL_TASKS, eval_answers, note


def test_eval_tasks(demo):
    answers = eval_answers(demo)
    same = sum(answer == task["reference_output"] for answer, task in zip(answers, EVAL_TASKS))
    right = sum(answer == task["answer"] for answer, task in zip(answers, EVAL_TASKS))
    reference = sum(task["reference_output"] == task["answer"] for task in EVAL_TASKS)
    for answer, task in zip(answers, EVAL_TASKS):
        if answer != task["reference_output"]:
            print(f"\n  differs: {task['prompt']!r}: {answer!r}, reference {task['reference_output']!r}")
    note(f"{len(EVAL_TASKS)} eval tasks: {right} right (reference {reference}), {same} equal to the reference's text")
    # the reference ran the unquantised weights in float32
    assert right >= reference - 1
    assert same >= len(EVAL_TASKS) - 2
