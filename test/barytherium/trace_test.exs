defmodule Barytherium.TraceTest do
  @moduledoc "What `Barytherium.Client.trace/2` shows."
  use Barytherium.ClientCase, async: true

  alias Barytherium.TestBroker

  defp connected(opts) do
    broker = start_supervised!(TestBroker)
    url = "stomp://me:hunter2@127.0.0.1:#{TestBroker.port(broker)}"
    client = start_supervised!({Client, [url: url, backoff: {1, 10}] ++ opts})
    {client, broker}
  end

  # Until a frame with this command comes: all frames, as `{direction, command}`.
  defp traced(until, seen \\ []) do
    assert_receive {:barytherium, :trace, {direction, frames, connection}}
    assert is_pid(connection)
    seen = seen ++ for(frame <- frames, do: {direction, frame})
    if Enum.any?(frames, &(&1.command == until)), do: seen, else: traced(until, seen)
  end

  defp commands(seen), do: for({direction, frame} <- seen, do: {direction, frame.command})

  test "all frames, from CONNECT on, without credentials" do
    {listener, url} = broker("me:hunter2@")
    headers = [{"token", "hunter2"}]
    client = start_supervised!({Client, url: url, headers: headers})
    assert Client.trace(client, self()) == :ok
    peer = accept_connected(listener)
    seen = traced(:connected)
    assert commands(seen) == [sent: :connect, received: :connected]
    [{:sent, connect} | _] = seen

    assert %{"login" => "...", "token" => "...", "host" => "/"} =
             Frame.headers_to_map(connect.headers)

    refute inspect(seen) =~ "hunter2"

    {subscription, _headers} = subscribed(client, peer)
    assert commands(traced(:receipt)) == [sent: :subscribe, received: :receipt]
    message(peer, "1-none", "unexpected")
    assert commands(traced(:message)) == [received: :message]
    {_pid, _number} = subscription
  end

  test "is switched on and off while messages come, which still go where they belong" do
    {client, broker} = connected([])
    {:ok, subscription} = Client.subscribe(client, "/queue/a", ack: :auto)
    publish = fn body -> TestBroker.publish(broker, "/queue/a", body) end
    publish.("1")
    assert [%Frame{body: "1"}] = receive_messages(subscription, 1)
    refute_received {:barytherium, :trace, _copy}
    :ok = Client.trace(client, self())
    publish.("2")
    assert [%Frame{body: "2"} = frame] = receive_messages(subscription, 1)
    assert [{:received, ^frame}] = traced(:message)
    :ok = Client.trace(client, nil)
    publish.("3")
    assert [%Frame{body: "3"}] = receive_messages(subscription, 1)
    refute_received {:barytherium, :trace, _copy}
  end

  test "goes on over connections, and ends with its process" do
    {client, broker} = connected([])
    test = self()

    {:ok, tap} =
      Task.start(fn ->
        :ok = Client.trace(client, self())
        send(test, :traced)
        for _n <- Stream.cycle([1]), do: receive(do: (copy -> send(test, {:copy, copy})))
      end)

    assert_receive :traced
    eventually(fn -> Client.status(client).state == :connected end)
    TestBroker.fault(broker, :close)
    eventually(fn -> Client.status(client).connections == 2 end)
    assert_receive {:copy, {:barytherium, :trace, {:sent, [%Frame{command: :connect}], _}}}
    Process.exit(tap, :kill)
    eventually(fn -> :sys.get_state(client) |> elem(1) |> Map.fetch!(:tap) == nil end)
    assert Client.publish(client, "/queue/a", "1", wait: true) == :ok
  end

  test "a consumer's frames, its acknowledgements among them" do
    defmodule Consuming do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_message(_frame, state), do: {:ack, state}
    end

    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    consumer = start_supervised!({Consuming, url: url})
    TestBroker.await_subscription(broker, "/queue/a")
    [client] = Barytherium.Consumer.clients(consumer)
    :ok = Client.trace(client, self())
    TestBroker.publish(broker, "/queue/a", "1")
    # The receipt of SUBSCRIBE may still be on its way.
    seen = Enum.reject(commands(traced(:ack)), &(&1 == {:received, :receipt}))
    assert seen == [received: :message, sent: :ack]
  end

  test "over a WebSocket too" do
    listener = Peer.listen(:ws)
    client = start_supervised!({Client, url: "ws://127.0.0.1:#{Peer.port(listener)}/"})
    :ok = Client.trace(client, self())
    peer = Peer.accept(listener, :ws)
    expect(peer, :connect)
    reply(peer, :connected, [{"version", "1.2"}])
    assert commands(traced(:connected)) == [sent: :connect, received: :connected]
  end

  test "what is no process is a mistake" do
    {client, _broker} = connected([])
    assert_raise FunctionClauseError, fn -> Client.trace(client, :name) end
  end
end
