defmodule Barytherium.Network.SharingTest do
  @moduledoc "Several connections, and other processes, that send to one callback process."
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.Native

  @mark 64
  # Enough for several turns of each of 50 connections.
  @messages 1_500
  @mib 1024 * 1024
  @frames :binary.copy("MESSAGE\ndestination:/topic/a\n\n0123456789\0", 1_000)

  defp connect(listener, opts \\ [], frames \\ @frames) do
    {socket, peer} = Peer.pair()
    stats = Native.new_stats()
    id = make_ref()

    {:ok, receiver} =
      Receiver.start_loop(%{
        socket: socket,
        listener_pid: listener,
        network_pid: self(),
        # The listener tells the connections apart by this.
        sender_pid: id,
        hb_recv: 0,
        options: opts,
        stats: stats
      })

    spawn_link(fn -> pump(peer, frames) end)
    %{id: id, receiver: receiver, socket: socket, stats: stats}
  end

  defp pump(peer, frames), do: Connection.send(peer, frames) == :ok && pump(peer, frames)

  # Takes `count` messages, one each millisecond. Reports how many came from each connection, and the
  # greatest length of its mailbox.
  defp slow_callback(count) do
    test = self()
    spawn_link(fn -> take(count, %{}, 0, test) end)
  end

  defp take(0, taken, longest, test), do: send(test, {:taken, taken, longest})

  defp take(count, taken, longest, test) do
    {:message_queue_len, length} = Process.info(self(), :message_queue_len)

    receive do
      {:"$gen_cast", {:barytherium, :frames, {_frames, sender}}} ->
        # The work of the callback process.
        Process.sleep(1)
        take(count - 1, Map.update(taken, sender, 1, &(&1 + 1)), max(longest, length), test)
    end
  end

  for count <- [2, 8, 50] do
    test "#{count} connections to one slow callback process get equal shares, and share the mark" do
      count = unquote(count)
      callback = slow_callback(@messages)
      connections = for _n <- 1..count, do: connect(callback)
      assert_receive {:taken, taken, longest}, 60_000
      parts = for %{id: id} <- connections, do: Map.get(taken, id, 0)
      assert Enum.min(parts) >= 0.6 * @messages / count, inspect(parts)
      assert longest <= @mark + count
    end
  end

  test "when waiting connections are killed, the others continue" do
    callback = spawn_link(&take_when_told/0)
    connections = for _n <- 1..4, do: connect(callback)
    eventually(fn -> Enum.all?(connections, &(pauses(&1) > 0)) end)
    # Any of the four may be the one that looks at the mailbox.
    {last, killed} = List.pop_at(connections, Enum.random(0..3))

    for %{receiver: receiver} <- killed do
      Process.unlink(receiver)
      Process.exit(receiver, :kill)
    end

    before = frames(last)
    send(callback, :take)
    eventually(fn -> frames(last) > before + 100_000 end, 1_000)
  end

  defp take_when_told do
    receive do: (:take -> :ok)
    take_all()
  end

  defp take_all do
    receive do: ({:"$gen_cast", _frames} -> take_all())
  end

  # One more than half of the mark, the mark, and far more.
  for others <- [33, 64, 10_000] do
    test "a listener with #{others} messages of others that it never takes still gets frames" do
      test = self()

      listener =
        spawn_link(fn ->
          for n <- 1..unquote(others), do: send(self(), {:never, n})
          send(test, :ready)
          take_frames(test)
        end)

      assert_receive :ready
      connections = for _n <- 1..2, do: connect(listener)
      # More messages than are sent before the first look at the mailbox.
      for _n <- 1..80, do: assert_receive(:frames, 5_000)
      for connection <- connections, do: eventually(fn -> pauses(connection) > 0 end)
      for _n <- 1..4, do: assert_receive(:frames, 5_000)
    end
  end

  defp take_frames(test) do
    receive do
      # Slowly, so that the mailbox fills.
      {:"$gen_cast", {:barytherium, :frames, {_frames, _sender}}} ->
        Process.sleep(1)
        send(test, :frames)
    end

    take_frames(test)
  end

  test "a listener that takes nothing gets no more messages than the mark and one" do
    listener = spawn_link(fn -> Process.sleep(:infinity) end)
    for n <- 1..100, do: send(listener, {:never, n})
    connection = connect(listener)
    eventually(fn -> pauses(connection) > 0 end)
    before = queued(listener)
    # Several times the time before a trial.
    Process.sleep(1_000)
    assert queued(listener) <= before + 1
    assert before <= 100 + @mark
  end

  test "a process that starts the receiver and is its listener gets no more than the mark" do
    test = self()

    listener =
      spawn_link(fn ->
        {socket, peer} = Peer.pair()
        spawn_link(fn -> pump(peer, connected_bytes() <> @frames) end)
        {:ok, _receiver} = Receiver.start_link(socket, self(), test, self())
        Process.sleep(:infinity)
      end)

    # The peer sends CONNECTED again and again, but only the first one has to be answered.
    reply_heart_beats(0)
    eventually(fn -> queued(listener) >= @mark end)
    # Without the limit there would be far more after this time.
    Process.sleep(200)
    assert queued(listener) <= @mark + 1
  end

  for kind <- ["name", "name and node"] do
    test "a listener given by #{kind} gets no more than the mark" do
      # Only now: another test may have given this node its name.
      name = if unquote(kind) == "name", do: __MODULE__, else: {__MODULE__, node()}
      listener = spawn_link(fn -> Process.sleep(:infinity) end)
      Process.register(listener, __MODULE__)
      connection = connect(name)
      eventually(fn -> pauses(connection) > 0 end)
      assert queued(listener) <= @mark + 1
      Process.unregister(__MODULE__)
    end
  end

  # `:erlang.memory/1` works only with the VM's own allocators.
  @tag :memory
  test "many short headers count with the memory that they take up" do
    frame = fn name -> ["MESSAGE\n", List.duplicate([name, ":\n"], 900), "\n\0"] end
    frames = IO.iodata_to_binary(List.duplicate([frame.("a"), frame.("b")], 200))
    listener = spawn_link(fn -> Process.sleep(:infinity) end)
    before = :erlang.memory(:total)
    connection = connect(listener, [high_water_mark: 1_000_000], frames)
    eventually(fn -> pauses(connection) > 0 end, 1_000)
    assert :erlang.memory(:total) - before < 64 * @mib
    assert queued(listener) in 16..64
  end

  test "a listener's account is gone when its connections are" do
    eventually(fn -> Native.live_accounts() == 0 end)
    listener = spawn_link(fn -> Process.sleep(:infinity) end)
    connections = for _n <- 1..3, do: connect(listener)
    eventually(fn -> Enum.all?(connections, &(pauses(&1) > 0)) end)
    assert Native.live_accounts() == 1
    for %{socket: socket} <- connections, do: Connection.close(socket)
    for _n <- 1..3, do: assert_receive({:"$gen_cast", {:barytherium, :disconnect, :closed}})
    eventually(fn -> Native.live_accounts() == 0 end)
  end

  defp pauses(%{stats: stats}), do: Native.stats(stats).pauses
  defp frames(%{stats: stats}), do: Native.stats(stats).frames

  defp queued(listener) do
    {:message_queue_len, length} = Process.info(listener, :message_queue_len)
    length
  end
end
