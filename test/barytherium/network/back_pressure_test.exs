defmodule Barytherium.Network.BackPressureTest do
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.Native

  @mib 1024 * 1024
  @frame "MESSAGE\nmessage-id:1\ncontent-length:1024\n\n" <> :binary.copy("x", 1024) <> "\0"
  @frames 100_000

  # A listener that takes nothing until it is told to count. Then it takes all messages.
  defp slow_listener do
    test = self()

    spawn_link(fn ->
      receive do: (:count -> count(0, test))
    end)
  end

  defp count(frames, test) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {more, _sender}}} ->
        count(frames + length(more), test)

      {:report, at_least} when frames >= at_least ->
        send(test, {:counted, frames})
    end
  end

  defp start(listener, opts, transport \\ :tcp, hb_recv \\ 0) do
    {socket, peer} = Peer.pair(transport)
    stats = Native.new_stats()

    state = %{
      socket: socket,
      listener_pid: listener,
      network_pid: self(),
      sender_pid: self(),
      parse_state: Frame.parse_state(),
      hb_recv: hb_recv,
      options: opts,
      stats: stats
    }

    {:ok, receiver} = Task.start_link(Receiver, :loop, [state])
    %{receiver: receiver, peer: peer, socket: socket, listener: listener, stats: stats}
  end

  # Sends from a process of its own, because back-pressure has to block it.
  defp flood(%{peer: peer} = connection) do
    frames = :binary.copy(@frame, 100)

    {sender, monitor} =
      spawn_monitor(fn ->
        for _time <- 1..div(@frames, 100), do: Peer.try_send(peer, frames)
      end)

    Map.merge(connection, %{sender: sender, monitor: monitor})
  end

  defp pauses(%{stats: stats}), do: Native.stats(stats).pauses
  defp await_pause(connection), do: eventually(fn -> pauses(connection) > 0 end)

  defp queued(listener) do
    {:message_queue_len, length} = Process.info(listener, :message_queue_len)
    length
  end

  for transport <- Peer.transports() do
    test "a slow listener blocks the peer, and loses nothing (#{transport})" do
      connection = slow_listener() |> start([], unquote(transport), 50) |> flood()
      await_pause(connection)

      # The receiver reads nothing for several heart-beats. It must not time out.
      refute_receive {:"$gen_cast", {:barytherium, :disconnect, _reason}}, 500
      assert Process.alive?(connection.sender)
      # The mark, and one trial message.
      assert queued(connection.listener) <= 65

      send(connection.listener, :count)
      monitor = connection.monitor
      assert_receive {:DOWN, ^monitor, :process, _sender, :normal}, 30_000
      # Everything was sent, so frames that are missing in the end were lost.
      Peer.close(connection.peer)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}, 30_000
      send(connection.listener, {:report, @frames})
      assert_receive {:counted, @frames}, 30_000
    end
  end

  # Takes what is in its mailbox when it is told to.
  defp taking_listener do
    spawn_link(fn -> Enum.each(Stream.cycle([:take]), &take_when_told/1) end)
  end

  defp take_when_told(:take) do
    receive do: (:take -> :ok)
    take_all()
  end

  defp take_all do
    receive do
      {:"$gen_cast", {:barytherium, :frames, _frames}} -> take_all()
    after
      0 -> :ok
    end
  end

  test "each pause counts, and who pauses holds no turn" do
    connection = taking_listener() |> start([]) |> flood()

    for n <- 1..3 do
      eventually(fn -> pauses(connection) == n end)
      eventually(fn -> Native.live_turns() == 0 end)
      send(connection.listener, :take)
    end
  end

  test "a peer that falls silent after a pause is noticed, however long the pause was" do
    opts = [heartbeat_receive_allowance: 50]
    connection = taking_listener() |> start(opts, :tcp, 50)
    # The loop waits, with a timer for the deadline.
    Peer.send(connection.peer, "\n")
    Process.sleep(10)
    spawn_link(fn -> Connection.send(connection.peer, :binary.copy(@frame, 20_000)) end)
    await_pause(connection)
    # The timer goes off in the pause.
    refute_receive {:"$gen_cast", {:barytherium, :disconnect, _reason}}, 300
    # Everything is taken, and nothing more comes.
    taker =
      spawn_link(fn ->
        for _n <- 1..500, do: send(connection.listener, :take) && Process.sleep(5)
      end)

    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :timeout}}, 10_000
    Process.unlink(taker)
    Process.exit(taker, :kill)
  end

  test "a mailbox holds no more than the mark, nor more than 32 MiB" do
    connection = slow_listener() |> start(high_water_mark: 4) |> flood()
    await_pause(connection)
    assert queued(connection.listener) in 4..5

    large = ["MESSAGE\ncontent-length:#{5 * @mib}\n\n", :binary.copy("x", 5 * @mib), 0]
    connection = start(slow_listener(), high_water_mark: 1_000)
    spawn_link(fn -> for _n <- 1..40, do: Connection.send(connection.peer, large) end)
    await_pause(connection)
    assert queued(connection.listener) in 7..8
  end

  test "frames that were read before the pause are delivered first, and in order" do
    test = self()

    listener =
      spawn_link(fn ->
        receive do: (:take -> :ok)
        take(3_000, [], test)
      end)

    connection = start(listener, high_water_mark: 1)
    # They are read at once, and are too many for one message.
    Peer.send(connection.peer, for(n <- 1..3_000, do: "MESSAGE\nn:#{n}\n\n\0"))
    await_pause(connection)
    send(listener, :take)
    assert_receive {:taken, numbers}
    assert numbers == Enum.map(1..3_000, &to_string/1)
  end

  defp take(0, taken, test), do: send(test, {:taken, Enum.reverse(taken)})

  defp take(count, taken, test) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        numbers = for %Frame{headers: [{"n", n}]} <- frames, do: n
        take(count - length(frames), Enum.reverse(numbers, taken), test)
    end
  end

  test "without a mark the mailbox grows" do
    connection = slow_listener() |> start(high_water_mark: :infinity) |> flood()
    monitor = connection.monitor
    assert_receive {:DOWN, ^monitor, :process, _sender, :normal}, 30_000
    send(connection.listener, :count)
    send(connection.listener, {:report, @frames})
    assert_receive {:counted, @frames}, 30_000
    assert pauses(connection) == 0
  end

  test "loop/1 does not wait for its caller if that is the listener" do
    {socket, peer} = Peer.pair()
    spawn_link(fn -> Peer.send_all(peer, :binary.copy(@frame, 20_000)) end)
    test = self()

    state = %{
      socket: socket,
      listener_pid: test,
      network_pid: test,
      sender_pid: test,
      parse_state: Frame.parse_state(),
      hb_recv: 0
    }

    assert Receiver.loop(Map.put(state, :options, high_water_mark: 2)) == :ok
    assert_received {:"$gen_cast", {:barytherium, :disconnect, :closed}}
  end

  describe "during a pause" do
    setup do
      connection = slow_listener() |> start([]) |> flood()
      await_pause(connection)
      connection
    end

    test "the end of the listener ends the connection", %{listener: listener} = connection do
      Process.unlink(listener)
      Process.exit(listener, :kill)
      assert_disconnect(:closed, connection.receiver)
    end

    test "only one timer makes it look again, however often it is woken", %{receiver: receiver} do
      {:monitors, [process: loop]} = Process.info(receiver, :monitors)
      for _n <- 1..1_000, do: send(loop, {:barytherium, :room})
      :sys.get_state(loop)
      :erlang.trace(loop, true, [:receive])
      # The longest pause is 0.1 s. Each of 1,000 timers would wake it several times in this time.
      Process.sleep(500)
      :erlang.trace(loop, false, [:receive])
      {:messages, messages} = Process.info(self(), :messages)
      assert Enum.count(messages, &match?({:trace, ^loop, :receive, _message}, &1)) < 500
    end

    test "closing the socket ends the connection", connection do
      Connection.close(connection.socket)
      assert_disconnect(:closed, connection.receiver)
    end

    test "killing the receiver leaves nothing behind", %{receiver: receiver} = connection do
      Process.unlink(receiver)
      Process.exit(receiver, :kill)
      Connection.close(connection.socket)
      monitor = connection.monitor
      assert_receive {:DOWN, ^monitor, :process, _sender, _closed}
      eventually(fn -> Native.live_connections() == 0 end)
    end
  end

  test "stats count frames, bytes and time" do
    connection = start(slow_listener(), [])
    assert %{frames: 0, bytes: 0, pauses: 0, idle: nil} = Native.stats(connection.stats)
    Peer.send(connection.peer, [@frame, @frame, "\n"])
    bytes = 2 * byte_size(@frame) + 1
    eventually(fn -> Native.stats(connection.stats).bytes == bytes end)
    # When it waits, everything before has been counted.
    eventually(fn -> Native.stats(connection.stats).waits > 0 end)

    assert %{frames: 2, bytes: ^bytes, pauses: 0, idle: idle} =
             stats = Native.stats(connection.stats)

    assert stats.slices >= stats.waits
    assert stats.parse_time > 0
    assert idle < 10_000
    # The time since the last activity grows.
    eventually(fn -> Native.stats(connection.stats).idle > idle end)
  end
end
