defmodule Barytherium.SlowCallbacksTest do
  @moduledoc "Nothing but its own messages waits for a user's code, however long that takes."
  use Barytherium.ClientCase, async: true

  alias Barytherium.{Consumer, Network}

  # Blocks wherever a test wants it to, until it is told to go on.
  defmodule Slow do
    use Barytherium.Consumer, subscribe: ["/queue/a", "/queue/b"], backoff: {10, 10}

    @impl true
    def handle_connected(_info, state), do: {:ok, block(:handle_connected, state)}

    @impl true
    def handle_disconnected(_reason, state), do: {:ok, block(:handle_disconnected, state)}

    @impl true
    def handle_message(frame, state) do
      send(state.test, {:message, frame.body})
      {:ack, block(:handle_message, state)}
    end

    defp block(where, %{where: where, test: test} = state) do
      send(test, {:blocked, self()})
      receive do: (:go -> %{state | where: nil})
    end

    defp block(_where, state), do: state
  end

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  defp started(where, opts \\ [], headers \\ [{"version", "1.2"}]) do
    {listener, url} = broker()
    init_arg = %{where: where, test: self()}
    {:ok, consumer} = Slow.start_link([url: url, init_arg: init_arg] ++ opts)
    peer = accept_connected(listener, headers)
    {consumer, peer, listener}
  end

  defp subscribed(peer) do
    for _n <- 1..2 do
      {%{"id" => id}, ""} = confirm(peer, :subscribe)
      id
    end
  end

  defp works?(consumer, peer) do
    [client] = Consumer.clients(consumer)
    assert %{state: :connected} = Client.status(client)
    publishing = Task.async(fn -> Client.publish(client, "/queue/c", "x") end)
    confirm_send(peer)
    assert Task.await(publishing) == :ok
    client
  end

  defp confirm_send(peer) do
    case next_frame(peer) do
      %Frame{command: :send, headers: headers} ->
        {"receipt", receipt} = List.keyfind(headers, "receipt", 0)
        reply(peer, :receipt, [{"receipt-id", receipt}])

      %Frame{command: :ack} ->
        confirm_send(peer)
    end
  end

  test "handle_connected does not hold up receipts, and gets the messages afterwards" do
    {consumer, peer, _listener} = started(:handle_connected)
    [id, _other] = subscribed(peer)
    assert_receive {:blocked, worker}
    works?(consumer, peer)
    message(peer, id, "1")
    works?(consumer, peer)
    send(worker, :go)
    assert_receive {:message, "1"}
    expect(peer, :ack)
  end

  test "handle_message does not hold up receipts of subscriptions, heart-beats, or reconnecting" do
    headers = [{"version", "1.2"}, {"heart-beat", "100,100"}]
    opts = [heart_beat: {100, 100}, heartbeat_receive_allowance: 1_000]
    {consumer, peer, listener} = started(:handle_message, opts, headers)
    {%{"id" => id} = first, ""} = expect(peer, :subscribe)
    # The receipt comes behind messages of its own subscription.
    for n <- 1..150, do: message(peer, id, "#{n}")
    reply(peer, :receipt, [{"receipt-id", first["receipt"]}])
    confirm(peer, :subscribe)
    assert_receive {:blocked, worker}

    for _n <- 1..15 do
      Process.sleep(100)
      Peer.send(peer, "\n")
    end

    client = works?(consumer, peer)
    Peer.close(peer)
    peer = accept_connected(listener)
    subscribed(peer)
    works?(consumer, peer)
    send(worker, :go)

    # Its acknowledgement would be one of another connection, and the broker delivers the others again.
    eventually(fn -> Process.info(worker, :message_queue_len) == {:message_queue_len, 0} end)
    assert Client.status(client).connections == 2
    assert_silent(peer)
    assert_received {:message, "1"}
    refute_received {:message, "2"}
  end

  test "handle_disconnected does not hold up reconnecting" do
    {consumer, peer, listener} = started(:handle_disconnected)
    subscribed(peer)
    Peer.close(peer)
    assert_receive {:blocked, _worker}

    for _n <- 1..3 do
      peer = accept_connected(listener)
      subscribed(peer)
      works?(consumer, peer)
      Peer.close(peer)
    end
  end

  test "a callback that never returns is killed in time when the consumer stops" do
    {consumer, peer, _listener} = started(:handle_message, shutdown: 1_000)
    [id, _other] = subscribed(peer)
    message(peer, id, "1")
    assert_receive {:blocked, worker}
    monitor = Process.monitor(worker)
    stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
    disconnect(peer)
    assert Task.await(stopping) == :ok
    assert_receive {:DOWN, ^monitor, :process, ^worker, :killed}
  end

  # Takes half a second for a message.
  defmodule HalfASecond do
    use Barytherium.Consumer, subscribe: {"/queue/a", ack: :auto}

    @impl true
    def handle_message(frame, test) do
      Process.sleep(500)
      send(test, {:handled, frame.body})
      {:ack, test}
    end
  end

  test "all connections of a consumer stop at once" do
    {listener, url} = broker()
    opts = [url: url, init_arg: self(), concurrency: 20, shutdown: 8_000]
    {:ok, consumer} = HalfASecond.start_link(opts)
    peers = for _n <- 1..20, do: accept_connected(listener)

    for peer <- peers do
      {%{"id" => id}, ""} = confirm(peer, :subscribe)
      for n <- 1..2, do: message(peer, id, "#{n}")
    end

    for client <- Consumer.clients(consumer),
        do: eventually(fn -> Client.stats(client).frames == 4 end)

    stopping = Task.async(fn -> :timer.tc(fn -> Supervisor.stop(consumer, :shutdown) end) end)

    ending =
      for peer <- peers do
        Task.async(fn ->
          confirm(peer, :unsubscribe)
          disconnect(peer)
        end)
      end

    Task.await_many(ending, 20_000)
    {time, :ok} = Task.await(stopping, 20_000)
    # One after the other they would take 20 s.
    assert time < 5_000_000
    for _n <- 1..40, do: assert_received({:handled, _body})
  end

  test "a stuck subscriber keeps no more than 32 MiB of messages and one" do
    {listener, url} = broker()
    client = start_supervised!({Client, url: url})
    peer = accept_connected(listener)
    stuck = spawn_link(fn -> Process.sleep(:infinity) end)

    subscribing =
      Task.async(fn ->
        Client.subscribe(client, "/queue/a", to: stuck, ack: :auto, timeout: 10_000)
      end)

    eventually(fn -> Client.status(client).state == :connected end)
    {%{"id" => id}, ""} = confirm_subscription(peer, subscribing)
    body = :binary.copy("x", 4 * 1024 * 1024)
    headers = [{"subscription", id}, {"message-id", "m"}]
    spawn_link(fn -> for _n <- 1..30, do: reply(peer, :message, headers, body) end)
    network = Client.status(client).network
    eventually(fn -> Network.stats(network).pauses > 0 end)
    {:message_queue_len, queued} = Process.info(stuck, :message_queue_len)
    assert queued in 8..9
    # The client answers.
    assert Client.status(client).state == :connected
  end

  # It may have been noted before there was a connection.
  defp confirm_subscription(peer, subscribing) do
    confirmed = confirm(peer, :subscribe)
    assert {:ok, _subscription} = Task.await(subscribing)
    confirmed
  end

  # Publishes each message, with a receipt, through its own client.
  defmodule Forwarder do
    use Barytherium.Consumer, subscribe: "/queue/a"

    @impl true
    def handle_connected(%{client: client}, {test, _client}), do: {:ok, {test, client}}

    @impl true
    def handle_message(frame, {test, client} = state) do
      send(test, {:handling, self()})
      receive do: (:go -> :ok)
      send(test, {:published, Client.publish(client, "/queue/b", "x")})
      send(test, {:handled, frame.body})
      {:ack, state}
    end

    @impl true
    def terminate(reason, {test, _client}), do: send(test, {:terminate, reason})
  end

  defp forwarder(opts \\ []) do
    {listener, url} = broker()
    {:ok, consumer} = Forwarder.start_link([url: url, init_arg: {self(), nil}] ++ opts)
    peer = accept_connected(listener)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    {consumer, peer, id, listener}
  end

  defp large(peer, id, count) do
    headers = [{"subscription", id}, {"message-id", "m"}, {"ack", "a"}]
    body = :binary.copy("x", 1024 * 1024)
    for _n <- 1..count, do: reply(peer, :message, headers, body)
  end

  test "a receipt that comes behind more messages than a callback process may have is read" do
    {consumer, peer, id, _listener} = forwarder()
    flood = Task.async(fn -> large(peer, id, 60) end)
    assert_receive {:handling, worker}
    [client] = Consumer.clients(consumer)
    eventually(fn -> Client.stats(client).pauses > 0 end)
    send(worker, :go)
    Task.await(flood)
    confirm_send(peer)
    assert_receive {:published, :ok}
  end

  test "what a subscriber that is behind gets no more of holds up nobody" do
    {listener, url} = broker()
    client = start_supervised!({Client, url: url})
    peer = accept_connected(listener)
    eventually(fn -> Client.status(client).state == :connected end)
    stuck = spawn_link(fn -> Process.sleep(:infinity) end)
    subscribing = Task.async(fn -> Client.subscribe(client, "/queue/a", to: stuck) end)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    {:ok, subscription} = Task.await(subscribing)
    spawn_link(fn -> large(peer, id, 400) end)
    eventually(fn -> Client.stats(client).pauses > 0 end)
    Task.async(fn -> Client.unsubscribe(client, subscription, 10_000) end)
    # Everything is read now, and dropped.
    confirm(peer, :unsubscribe)
    publishing = Task.async(fn -> Client.publish(client, "/queue/b", "", timeout: 10_000) end)
    confirm(peer, :send)
    assert Task.await(publishing, 10_000) == :ok
  end

  test "callbacks may publish while their consumer stops" do
    {consumer, peer, id, _listener} = forwarder()
    for n <- 1..3, do: message(peer, id, "#{n}")
    assert_receive {:handling, worker}
    [client] = Consumer.clients(consumer)
    eventually(fn -> Client.stats(client).frames == 5 end)
    stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
    eventually(fn -> {:"$gen_cast", {:client, :finish}} in mailbox(worker) end)

    for n <- 1..3 do
      send(worker, :go)
      confirm_send(peer)
      assert_receive {:published, :ok}
      body = "#{n}"
      assert_receive {:handled, ^body}
    end

    ends(peer)
    Task.await(stopping)
    assert_receive {:terminate, :shutdown}
  end

  defp mailbox(pid), do: pid |> Process.info(:messages) |> elem(1)

  # The acknowledgements, and the DISCONNECT.
  defp ends(peer) do
    case next_frame(peer) do
      %Frame{command: :ack} ->
        ends(peer)

      %Frame{command: :disconnect, headers: headers} ->
        {"receipt", receipt} = List.keyfind(headers, "receipt", 0)
        reply(peer, :receipt, [{"receipt-id", receipt}])
    end
  end

  test "a consumer whose broker goes away as it stops ends all the same, and in order" do
    for n <- 1..20 do
      {consumer, peer, _id, _listener} = forwarder(shutdown: 20_000)
      stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
      if rem(n, 2) == 0, do: Peer.close(peer), else: Peer.reset(peer)
      # The time for stopping is much longer.
      assert Task.await(stopping, 10_000) == :ok
      assert_receive {:terminate, :shutdown}
    end
  end

  test "a request that the broker does not answer does not keep a consumer from stopping in order" do
    {consumer, peer, _id, _listener} = forwarder(shutdown: 2_000)
    [client] = Consumer.clients(consumer)
    spawn(fn -> Client.publish(client, "/queue/b", "", timeout: 60_000) end)
    expect(peer, :send)
    stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
    assert_receive {:terminate, :shutdown}
    disconnect(peer)
    assert Task.await(stopping) == :ok
  end
end
