defmodule Barytherium.Network.LifeCycleTest do
  # Not async, because the tests count descriptors of the whole VM.
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.{Native, Network}
  alias Barytherium.Network.ReceiveLoop

  # Checks that `fun`, called `count` times, leaves no descriptor.
  defp assert_same_descriptors(count, fun) do
    before = descriptors()
    for n <- 1..count, do: fun.(n)
    eventually(fn -> descriptors() <= before end)
  end

  # Everything that a connection might leave behind.
  defp counts do
    {:monitors, monitors} = Process.info(self(), :monitors)
    {:monitored_by, monitored_by} = Process.info(self(), :monitored_by)

    %{
      descriptors: descriptors(),
      connections: Native.live_connections(),
      turns: Native.live_turns(),
      processes: length(Process.list()),
      ports: length(Port.list()),
      monitors: length(monitors) + length(monitored_by)
    }
  end

  # There may be fewer than before, because processes of an earlier test may have ended meanwhile.
  defp assert_back_at(before) do
    eventually(fn ->
      :erlang.garbage_collect()
      more = Map.filter(counts(), fn {what, count} -> count > before[what] end)
      more == %{} or {:more, more, :than, before}
    end)
  end

  defp finish(receiver, peer, socket, reason) do
    assert_disconnect(reason, receiver)
    Peer.close(peer)
    Connection.close(socket)
  end

  test "no account is left of a recipient whose route goes while there are frames for it" do
    before = Native.live_accounts()
    listener = Peer.listen(:tcp)
    routes = Native.new_routes()
    ids = for n <- 1..100, do: "#{n}"
    for id <- ids, do: Native.put_route(routes, [id], route([idle()], self()))
    Native.put_route(routes, ["kept"], route([idle()], self()))
    opts = [high_water_mark: 1_000_000]
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener), opts, routes)
    peer = Peer.accept(listener)
    Peer.send(peer, connected_bytes())
    frames = for id <- ids, into: "", do: "MESSAGE\nsubscription:#{id}\n\nx\0"

    flood = Task.async(fn -> for _n <- 1..3_000, do: Peer.send(peer, frames) end)
    eventually(fn -> Native.live_accounts() == before + length(ids) end)
    # While the flood is read. The rest of it comes to the test's process.
    for id <- ids, do: Native.delete_route(routes, id)
    Task.await(flood)
    Peer.send(peer, "RECEIPT\nreceipt-id:r\n\n\0")
    await_receipt()
    assert Native.live_accounts() == before
    GenServer.stop(network)
  end

  defp idle, do: spawn_link(fn -> Process.sleep(:infinity) end)

  defp await_receipt do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    if List.last(frames).command != :receipt, do: await_receipt()
  end

  # Nothing is delivered in these calls, so none of them notices that its process has been killed.
  test "a receiver that is killed in a call that delivers nothing closes its connection" do
    Process.flag(:trap_exit, true)
    large = 1_000_000_000
    head = "MESSAGE\ncontent-length:#{large}\n\n"

    kept =
      for n <- 1..40 do
        {receiver, peer, socket} = start_connected(:tcp, max_body: large)
        sender = spawn_link(fn -> flood(peer, head) end)
        state = :sys.get_state(receiver)
        Process.sleep(rem(n, 8))
        Process.exit(receiver, :kill)
        assert_receive {:EXIT, ^receiver, :killed}
        # Our duplicate was shut down. The socket itself is open.
        assert {:error, :closed} = Peer.recv(peer, 0, 5_000)
        Process.exit(sender, :kill)
        Peer.close(peer)
        Connection.close(socket)
        state
      end

    assert length(kept) == 40
  end

  defp flood(peer, head) do
    Peer.try_send(peer, head)
    keep_sending(peer, String.duplicate("x", 1_000_000))
  end

  defp keep_sending(peer, bytes) do
    if Peer.try_send(peer, bytes) == :ok, do: keep_sending(peer, bytes)
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "150 connections, one after the other, leave no descriptor, whoever ends them: #{transport}" do
      assert_same_descriptors(150, fn n ->
        {receiver, peer, socket} = start_connected(unquote(transport))

        case rem(n, 3) do
          0 -> Peer.close(peer)
          1 -> Connection.close(socket)
          2 -> Peer.send(peer, "GARBAGE")
        end

        reason = if rem(n, 3) == 2, do: :parse_error, else: :closed
        finish(receiver, peer, socket, reason)
      end)
    end
  end

  test "accounts of recipients go with their routes and with the connection" do
    before = Native.live_accounts()
    listener = Peer.listen(:tcp)
    routes = Native.new_routes()
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener), [], routes)
    peer = Peer.accept(listener)
    recipients = for _n <- 1..20, do: spawn_link(fn -> Process.sleep(:infinity) end)

    for {pid, id} <- Enum.with_index(recipients),
        do: Native.put_route(routes, ["#{id}"], route([pid], self()))

    Peer.send(peer, connected_bytes())
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    Peer.send(peer, for(id <- 0..19, do: "MESSAGE\nsubscription:#{id}\n\nx\0"))
    eventually(fn -> Native.live_accounts() == before + 20 end)
    for id <- 0..9, do: Native.delete_route(routes, "#{id}")
    Peer.send(peer, "RECEIPT\nreceipt-id:r\n\n\0")
    eventually(fn -> Native.live_accounts() == before + 10 end)
    GenServer.stop(network)
    eventually(fn -> Native.live_accounts() == before end)
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "150 connections at once leave no descriptor: #{transport}" do
      before = descriptors()
      connections = for _n <- 1..150, do: start_connected(unquote(transport))
      for {_receiver, peer, _socket} <- connections, do: Peer.close(peer)

      for {receiver, _peer, _socket} <- connections do
        monitor = Process.monitor(receiver)
        assert_receive {:DOWN, ^monitor, :process, ^receiver, _reason}
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
      end

      eventually(fn -> descriptors() <= before end)
    end
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "killed receivers leave no descriptor, at any stage: #{transport}" do
      Process.flag(:trap_exit, true)
      body = String.duplicate("x", 1_000_000)

      assert_same_descriptors(60, fn n ->
        transport = unquote(transport)

        {receiver, peer, socket} =
          if rem(n, 3) == 0, do: start_receiver(transport), else: start_connected(transport)

        if rem(n, 3) == 2 do
          # The receiver is killed in a slice, or close to one.
          spawn_link(fn ->
            Peer.try_send(peer, ["MESSAGE\ncontent-length:5000000\n\n", body])
          end)
        end

        Process.exit(receiver, :kill)
        assert_receive {:EXIT, ^receiver, :killed}
        Peer.close(peer)
        Connection.close(socket)
      end)
    end
  end

  for transport <- [:tcp, :tls, :ws] do
    test "a killed receiver leaves nothing, even if a debugger keeps its state: #{transport}" do
      Process.flag(:trap_exit, true)
      before = descriptors()

      kept =
        for _n <- 1..5 do
          {receiver, peer, socket} = start_connected(unquote(transport))

          spawn_link(fn ->
            Peer.try_send(peer, ["MESSAGE\n\n", String.duplicate("x", 1_000_000)])
          end)

          state = :sys.get_state(receiver)
          Process.exit(receiver, :kill)
          assert_receive {:EXIT, ^receiver, :killed}
          # The end of our duplicate: the socket itself is open.
          assert {:error, :closed} = Peer.recv(peer, 0, 5_000)
          Peer.close(peer)
          Connection.close(socket)
          state
        end

      eventually(fn -> descriptors() <= before end)
      eventually(fn -> Native.live_turns() == 0 end)
      assert length(kept) == 5
    end
  end

  for transport <- [:tcp, :tls, :ssl, :ws, :wss] do
    test "killed networks leave nothing, at any stage: #{transport}" do
      Process.flag(:trap_exit, true)
      transport = unquote(transport)
      listener = Peer.listen(transport)
      counts = counts()

      for n <- 1..60 do
        options = Peer.options(transport)
        {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener), options)
        peer = Peer.accept(listener, transport)
        if rem(n, 3) > 0, do: Peer.send(peer, connected_bytes())
        if rem(n, 3) > 1, do: assert_receive({:"$gen_cast", {:barytherium, :frames, _frames}})
        Process.exit(network, :kill)
        assert_receive {:EXIT, ^network, :killed}
        Peer.close(peer)
      end

      assert_back_at(counts)
    end
  end

  @tag :memory
  test "20,000 connections, one after the other, leave nothing" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    counts = counts()
    memory = :erlang.memory(:total)

    for _n <- 1..20_000 do
      {:ok, socket} = Connection.connect({127, 0, 0, 1}, port)
      peer = Peer.accept(listener)
      {:ok, receiver} = Receiver.start_link(socket, self(), self(), self())
      # With a reset, no port stays in TIME_WAIT.
      Peer.reset(peer)
      monitor = Process.monitor(receiver)
      assert_receive {:DOWN, ^monitor, :process, ^receiver, _reason}
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    end

    assert_back_at(counts)
    :erlang.garbage_collect()
    assert :erlang.memory(:total) < memory + 16 * 1024 * 1024
  end

  test "loading the native module again is refused, and connections continue" do
    {receiver, peer, _socket} = start_connected()
    :code.purge(Native)
    assert {:error, :on_load_failure} = :code.load_file(Native)
    Peer.send(peer, "MESSAGE\n\nstill here\0")
    assert [%Frame{body: "still here"}] = receive_frames()
    Peer.close(peer)
    assert_disconnect(:closed, receiver)
  end

  test "connections continue when the module of the loop is loaded again" do
    connections = for _n <- 1..3, do: start_connected()

    for _time <- 1..3 do
      :code.purge(ReceiveLoop)
      {:module, ReceiveLoop} = :code.load_file(ReceiveLoop)
    end

    for {receiver, peer, _socket} <- connections do
      Peer.send(peer, "MESSAGE\n\nstill here\0")
      assert [%Frame{body: "still here"}] = receive_frames()
      Peer.close(peer)
      assert_disconnect(:closed, receiver)
    end
  end

  test "the loop of an idle connection ends with its listener" do
    for transport <- [:tcp, :socket] do
      listener = spawn(fn -> Process.sleep(:infinity) end)
      {socket, peer} = Peer.pair(transport)
      {:ok, receiver} = Receiver.start_link(socket, listener, self(), self())
      Process.exit(listener, :kill)
      assert_disconnect(:closed, receiver)
      Peer.assert_closed(peer)
    end
  end

  test "closing the socket is noticed while frames arrive one by one" do
    {socket, peer} = Peer.pair()
    frame = "MESSAGE\n\n\0"

    # Each frame makes the peer send the next, so the loop finds one whenever it reads.
    listener =
      spawn_link(fn ->
        Stream.repeatedly(fn -> receive(do: (_frames -> Peer.try_send(peer, frame))) end)
        |> Stream.run()
      end)

    {:ok, receiver} =
      Receiver.start_link(socket, listener, self(), self(), high_water_mark: :infinity)

    Peer.send(peer, connected_bytes())
    reply_heart_beats(0)
    Peer.send(peer, frame)
    Connection.close(socket)
    assert_disconnect(:closed, receiver)
  end

  test "the loop ends if the listener had ended before the start" do
    {socket, peer} = Peer.pair()
    {listener, monitor} = spawn_monitor(fn -> :ok end)
    assert_receive {:DOWN, ^monitor, :process, ^listener, _reason}
    {:ok, receiver} = Receiver.start_link(socket, listener, self(), self())
    Peer.send(peer, "ERROR\n\n\0")
    assert_disconnect(:closed, receiver)
    Peer.assert_closed(peer)
  end
end
