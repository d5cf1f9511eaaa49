from splitlearn_comm.server.handover import IDLE_S, Decision, Handover


def test_a_session_is_called_once_when_its_client_does_nothing() -> None:
    handover = Handover(patience_s=2.0)
    assert handover.decide("a", IDLE_S / 2) is Decision.WAIT
    assert handover.decide("a", IDLE_S * 2) is Decision.CALL
    handover.called("a", 1, now_s=10.0)
    assert handover.decide("a", 1.9) is Decision.WAIT
    assert handover.decide("a", 2.1) is Decision.END
    assert handover.decide("b", 2.1) is Decision.CALL
    assert handover.decide("", 0.0) is Decision.END


def test_who_was_called_is_waited_for_until_it_comes_back_or_is_gone_or_time_is_over() -> None:
    attachments = {"back": 1, "gone": 2, "silent": 3}
    handover = Handover(patience_s=2.0)
    for name, attachment in attachments.items():
        handover.called(name, attachment, now_s=10.0)
    assert handover.is_waiting(attachments.get, 10.5)
    del attachments["silent"]
    assert handover.is_waiting(attachments.get, 10.5)
    attachments["back"] = 7
    assert handover.is_waiting(attachments.get, 11.9)
    assert not handover.is_waiting(attachments.get, 12.1)


def test_nobody_is_waited_for_twice() -> None:
    handover = Handover(patience_s=2.0)
    handover.called("a", 1, now_s=10.0)
    assert not handover.is_waiting({"a": 2}.get, 10.1)
    assert not handover.is_waiting({"a": 1}.get, 10.2)


def test_a_training_is_never_called_and_waited_for_while_it_does_something() -> None:
    handover = Handover(patience_s=2.0)
    assert handover.decide("a", 1.9, is_training=True) is Decision.WAIT
    assert handover.decide("a", 0.0, is_training=True) is Decision.WAIT
    assert handover.decide("a", 2.1, is_training=True) is Decision.END
