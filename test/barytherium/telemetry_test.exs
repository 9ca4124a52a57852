defmodule Barytherium.TelemetryTest do
  @moduledoc "Uses a stand-in for `:telemetry`, because the project does not depend on it."
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.{Native, Network}

  setup do
    test = self()

    {:module, :telemetry, _binary, _term} =
      defmodule :telemetry do
        def execute([:barytherium, _event] = name, measurements, metadata) do
          send(:persistent_term.get(:telemetry), {name, measurements, metadata})
          :ok
        end
      end

    :persistent_term.put(:telemetry, test)

    on_exit(fn ->
      :code.purge(:telemetry)
      :code.delete(:telemetry)
      :persistent_term.erase(:telemetry)
    end)
  end

  test "a connect is an event" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, port)
    assert_receive {[:barytherium, :connect], %{duration: duration}, metadata}
    assert is_integer(duration)
    assert %{host: {127, 0, 0, 1}, port: ^port, result: :ok, network: ^network} = metadata
  end

  test "a pause is an event when it is over" do
    slow = spawn_link(fn -> receive do: (:take -> take()) end)
    {socket, peer} = Peer.pair()
    state = %{socket: socket, listener_pid: slow, network_pid: self(), sender_pid: self()}
    stats = Native.new_stats()
    state = Map.merge(state, %{stats: stats, hb_recv: 0, options: [high_water_mark: 1]})
    {:ok, _receiver} = Receiver.start_loop(state)
    Peer.send(peer, "MESSAGE\n\n\0")
    eventually(fn -> match?({_, _, _, _, 1, _, _}, Native.stats(stats)) end)
    send(slow, :take)
    assert_receive {[:barytherium, :pause], %{duration: duration}, metadata}
    assert is_integer(duration)
    assert metadata == %{listener: slow, network: self()}
  end

  defp take do
    receive do
      {:"$gen_cast", _message} -> take()
    end
  end

  test "an ERROR instead of CONNECTED is an event with its message" do
    {socket, peer} = Peer.pair()
    {:ok, _receiver} = Receiver.start_link(socket, self(), self(), self())

    ExUnit.CaptureLog.capture_log(fn ->
      Peer.send(peer, "ERROR\nmessage:Bad CONNECT\n\n\0")
      assert_receive {[:barytherium, :refused], %{}, metadata}
      assert metadata == %{message: "Bad CONNECT", listener: self(), network: self()}
    end)
  end

  test "a refused connection is an event with its reason" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    Peer.close(listener)
    {:ok, _network} = Network.start_link(self(), {127, 0, 0, 1}, port)
    assert_receive {[:barytherium, :connect], _measurements, %{result: :econnrefused}}
  end

  test "a disconnect is an event with the stats of the connection" do
    listener = Peer.listen(:tcp)
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener))
    peer = Peer.accept(listener)
    Peer.send(peer, "CONNECTED\n\n\0")
    Peer.close(peer)
    assert_receive {[:barytherium, :disconnect], measurements, metadata}
    assert %{frames: 1, bytes: 12, pauses: 0} = measurements
    assert %{reason: :closed, network: ^network} = metadata
  end
end
