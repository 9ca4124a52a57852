defmodule Barytherium.TestBrokerTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias Barytherium.{DefaultCallbackHandler, Frame, Network, Peer, TestBroker}
  alias Barytherium.Network.Sender

  @subscribe %Frame{command: :subscribe, headers: [{"id", "0"}, {"destination", "/queue/a"}]}

  defp connect(opts, headers \\ []) do
    broker = start_supervised!({TestBroker, opts})
    {:ok, _network} = Network.start_link(self(), "127.0.0.1", TestBroker.port(broker))
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect, headers: headers}])
    assert [%Frame{command: :connected}] = frames()
    {broker, sender}
  end

  defp frames do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    frames
  end

  test "messages reach subscribers of their destination, and receipts are sent" do
    {broker, sender} = connect([], [{"accept-version", "1.1,1.2"}])
    Sender.write(sender, [update_in(@subscribe.headers, &[{"receipt", "r"} | &1])])
    assert [%Frame{command: :receipt, headers: [{"receipt-id", "r"}]}] = frames()

    :ok = TestBroker.publish(broker, "/queue/b", "not for us")
    :ok = TestBroker.publish(broker, "/queue/a", "one", [{"k", "v:1"}])
    assert [%Frame{command: :message, body: "one"} = message] = frames()
    assert %{"k" => "v:1", "subscription" => "0"} = Frame.headers_to_map(message.headers)

    send = %Frame{command: :send, headers: [{"destination", "/queue/a"}], body: "two"}
    Sender.write(sender, [send])
    assert [%Frame{command: :message, body: "two"}] = frames()
  end

  test "a subscription can be awaited before and after it is made" do
    {broker, sender} = connect([])
    waiting = Task.async(fn -> TestBroker.await_subscription(broker, "/queue/a") end)
    assert catch_exit(TestBroker.await_subscription(broker, "/queue/b", 0))
    refute Task.yield(waiting, 0)
    Sender.write(sender, [@subscribe])
    assert Task.await(waiting) == :ok
    assert TestBroker.await_subscription(broker, "/queue/a") == :ok
  end

  defp await(broker), do: TestBroker.await_acknowledgements(broker, "/queue/a")

  # When the broker has handled what was written before, there still are messages to acknowledge.
  defp refute_settled(broker, sender) do
    headers = [{"destination", "/queue/other"}, {"receipt", "r"}]
    Sender.write(sender, [%Frame{command: :send, headers: headers}])
    assert [%Frame{command: :receipt}] = frames()

    assert {:timeout, _call} =
             catch_exit(TestBroker.await_acknowledgements(broker, "/queue/a", 50))
  end

  # Subscribes, and gets two messages.
  defp two_messages(ack, opts \\ []) do
    {broker, sender} = connect(opts, [{"accept-version", "1.2"}])
    Sender.write(sender, [update_in(@subscribe.headers, &[{"ack", ack} | &1])])
    TestBroker.await_subscription(broker, "/queue/a")
    for body <- ["one", "two"], do: :ok = TestBroker.publish(broker, "/queue/a", body)
    {broker, sender, at_least(2, [])}
  end

  test "acknowledgements can be awaited" do
    {broker, sender, [one, two]} = two_messages("client-individual")
    waiting = Task.async(fn -> await(broker) end)
    Sender.write(sender, [Frame.ack(two, "1.2")])
    refute_settled(broker, sender)
    Sender.write(sender, [Frame.nack(one, "1.2")])
    assert Task.await(waiting) == :ok
  end

  test "with ack:client one is for all before it" do
    {broker, sender, [one, two]} = two_messages("client")
    Sender.write(sender, [Frame.ack(one, "1.2")])
    refute_settled(broker, sender)
    :ok = TestBroker.publish(broker, "/queue/a", "three")
    [three] = at_least(1, [])
    Sender.write(sender, [Frame.ack(two, "1.2")])
    refute_settled(broker, sender)
    :ok = TestBroker.publish(broker, "/queue/a", "four")
    [four] = at_least(1, [])
    assert three.body == "three"
    Sender.write(sender, [Frame.ack(four, "1.2")])
    assert await(broker) == :ok
  end

  test "messages of the broker's own rate are others" do
    {broker, sender, messages} = two_messages("client-individual", rate: 50)
    {ours, ticks} = Enum.split_with(messages ++ at_least(5, []), &(&1.body in ["one", "two"]))
    Sender.write(sender, Enum.map(ticks, &Frame.ack(&1, "1.2")))

    assert {:timeout, _call} =
             catch_exit(TestBroker.await_acknowledgements(broker, "/queue/a", 50))

    Sender.write(sender, Enum.map(ours, &Frame.ack(&1, "1.2")))
    assert await(broker) == :ok
  end

  test "where nothing was acknowledged there is nothing to be glad of" do
    {broker, sender, _messages} = two_messages("client-individual")
    Sender.write(sender, [%Frame{command: :unsubscribe, headers: [{"id", "0"}]}])
    refute_settled(broker, sender)

    for destination <- ["/queue/a", "/queue/mistyped"] do
      arguments = [broker, destination, 50]
      assert {:timeout, _call} = catch_exit(apply(TestBroker, :await_acknowledgements, arguments))
    end

    # Without acknowledgements.
    Sender.write(sender, [
      update_in(@subscribe.headers, &List.keyreplace(&1, "destination", 0, {"destination", "/b"}))
    ])

    TestBroker.await_subscription(broker, "/b")
    :ok = TestBroker.publish(broker, "/b", "three")
    assert {:timeout, _call} = catch_exit(TestBroker.await_acknowledgements(broker, "/b", 50))
  end

  test "mistakes are told at once" do
    broker = start_supervised!(TestBroker)
    assert_raise ArgumentError, ~r/:prot/, fn -> TestBroker.start_link(prot: 1) end
    assert_raise FunctionClauseError, fn -> TestBroker.publish(broker, "/queue/a", 17) end
    assert_raise FunctionClauseError, fn -> TestBroker.await_acknowledgements(broker, nil) end
  end

  test "with a rate, it sends as many messages as are due" do
    {_broker, sender} = connect(rate: 1000, body: "tick")
    started = System.monotonic_time(:millisecond)
    Sender.write(sender, [@subscribe])
    # On a busy machine the broker catches up.
    messages = at_least(500, [])
    passed = System.monotonic_time(:millisecond) - started
    assert Enum.all?(messages, &match?(%Frame{command: :message, body: "tick"}, &1))
    assert passed >= 490
    assert length(messages) <= passed + 10
  end

  defp at_least(count, got) when length(got) >= count, do: got
  defp at_least(count, got), do: at_least(count, got ++ frames())

  for {command, headers, message} <- [
        {:message, [], "Cannot message this"},
        {:send, [], "Cannot send this"},
        {:send, [{"destination", "/queue/a"}, {"transaction", "x"}], "Invalid transaction id: x"},
        {:commit, [{"transaction", "x"}], "Invalid transaction id: x"},
        {:subscribe, [{"destination", "/queue/a"}], "SUBSCRIBE without an id"},
        {:unsubscribe, [{"id", "x"}], "No subscription found"},
        {:ack, [{"id", "x"}], "Unexpected ack of a message that this connection does not have"}
      ] do
    @tag headers: headers, message: message
    test "#{command} with #{inspect(headers)} is answered with ERROR, and ends the connection", %{
      headers: headers,
      message: message
    } do
      {_broker, sender} = connect([], [{"accept-version", "1.2"}])
      Sender.write(sender, [%Frame{command: unquote(command), headers: headers}])
      assert [%Frame{command: :error, headers: [{"message", ^message}]}] = frames()
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    end
  end

  test "messages of a transaction are delivered when it is committed" do
    {_broker, sender} = connect([])
    Sender.write(sender, [@subscribe])

    for {last, body} <- [abort: "no", commit: "yes"] do
      transaction = {"transaction", body}

      send = %Frame{
        command: :send,
        headers: [{"destination", "/queue/a"}, transaction],
        body: body
      }

      begin = %Frame{command: :begin, headers: [transaction]}
      Sender.write(sender, [begin, send, %Frame{command: last, headers: [transaction]}])
    end

    assert [%Frame{body: "yes", headers: headers}] = frames()
    refute List.keymember?(headers, "transaction", 0)
  end

  test "heart-beats keep an idle connection alive in both directions" do
    {broker, sender} = connect([heart_beat: {500, 500}], [{"heart-beat", "500,500"}])
    Sender.write(sender, [@subscribe])
    # Five intervals. Without heart-beats either side would have timed out.
    refute_receive {:"$gen_cast", _message}, 2_500
    :ok = TestBroker.publish(broker, "/queue/a", "still here")
    assert [%Frame{body: "still here"}] = frames()
  end

  test "the default callback handler acknowledges messages that ask for it" do
    listener = Peer.listen(:tcp)
    {:ok, handler} = DefaultCallbackHandler.start_link("127.0.0.1", Peer.port(listener), "/")
    peer = Peer.accept(listener)
    assert {:ok, "CONNECT\n" <> _headers} = Peer.recv(peer)
    Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
    Peer.send(peer, "MESSAGE\nack:7\n\n\0MESSAGE\n\nno\0MESSAGE\nack:a:8\n\n\0")
    expected = "ACK\nid:7\n\n\0ACK\nid:a\\c8\n\n\0"
    assert {:ok, ^expected} = Peer.recv(peer, byte_size(expected))
    GenServer.stop(handler)
  end

  test "the default callback handler connects, subscribes and logs" do
    broker = start_supervised!({TestBroker, rate: 100, body: "logged"})
    test = self()

    log =
      capture_log(fn ->
        port = TestBroker.port(broker)

        {:ok, handler} =
          DefaultCallbackHandler.start_link("127.0.0.1", port, "/", [], [@subscribe])

        Process.unlink(handler)
        monitor = Process.monitor(handler)
        :erlang.trace(handler, true, [:receive, {:tracer, test}])
        assert_receive {:trace, _, :receive, {_, {_, :frames, {[%Frame{body: "logged"} | _], _}}}}
        stop_supervised!(TestBroker)
        assert_receive {:DOWN, ^monitor, :process, ^handler, {:shutdown, :closed}}
      end)

    assert log =~ "accepted the connection"
    assert log =~ ~s(body: "logged")
    assert log =~ "Disconnected: closed"
  end
end
