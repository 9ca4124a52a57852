defmodule Barytherium.ArgumentsTest do
  use ExUnit.Case, async: true

  alias Barytherium.{Frame, Network, Peer}
  alias Barytherium.Network.Receiver

  @moduletag capture_log: true

  describe "a mistake in the arguments raises in the caller, and is named:" do
    for {mistake, args, message} <- [
          {"a misspelt option", ["localhost", 1, [high_watermrk: 8]], ":high_watermark"},
          {"an option that the loop relies on", ["localhost", 1, [active: true]], "passive"},
          {"a size that is too large", ["localhost", 1, [buffer: 2 ** 70]], ":buffer"},
          {"a port as a string", ["localhost", "61613", []], "\"61613\""},
          {"a port that is too high", ["localhost", 70_000, []], "70000"},
          {"no host", ["", 1, []], "not a host"},
          {"a host with a NUL", ["a\0b", 1, []], "not a host"},
          {"a path that is too long", [{:local, String.duplicate("x", 200)}, 0, []], "path"},
          {"options that are not a list", ["localhost", 1, %{}], "not a list"},
          {"an address as a string", ["localhost", 1, [ip: "127.0.0.1"]], ":ip"},
          {"a flag that is not a boolean", ["localhost", 1, [nodelay: "yes"]], ":nodelay"},
          {"an unknown backend", ["localhost", 1, [inet_backend: :foo]], ":inet_backend"}
        ] do
      test mistake do
        [host, port, opts] = unquote(Macro.escape(args))

        error = assert_raise ArgumentError, fn -> Network.start_link(self(), host, port, opts) end

        assert Exception.message(error) =~ unquote(message)
      end
    end

    test "a callback process that is nil, or a name that nobody has" do
      for callback <- [nil, :nobody_has_this_name, "pid"] do
        assert_raise ArgumentError, ~r/callback process/, fn ->
          Network.start_link(callback, "localhost", 1)
        end
      end
    end

    test "of the receive loop" do
      {socket, _peer} = Peer.pair()
      {:ok, udp} = :gen_udp.open(0)
      # NEW_PORT_EXT of the external term format: an atom, an id and a creation.
      elsewhere = :erlang.binary_to_term(<<131, 89, 119, 7, "far@off", 1::32, 1::32>>)
      loop = %{socket: socket, listener_pid: self(), network_pid: self(), sender_pid: self()}

      for {change, message} <- [
            {%{hb_recv: -1}, "hb_recv"},
            {%{hb_recv: 1.5}, "hb_recv"},
            {%{listener_pid: {:name, :other@node}}, "not distributed"},
            {%{socket: udp}, "no TCP socket"},
            {%{socket: elsewhere}, "another node, far@off"},
            {%{options: [max_headrs: 1]}, ":max_headers"}
          ] do
        error = assert_raise ArgumentError, fn -> Receiver.loop(Map.merge(loop, change)) end
        assert Exception.message(error) =~ message
      end

      assert_raise ArgumentError, ~r/:max_body/, fn -> Frame.parse_state(max_bdy: 1) end
    end
  end

  test "options that repeat what Barytherium sets are accepted" do
    listener = Peer.listen(:tcp)
    opts = [:binary, active: false, packet: :raw, mode: :binary]
    {:ok, _network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
  end

  test "values that only the socket refuses are a connect error, and end no process" do
    opts = [bind_to_device: "no such device"]
    {:ok, network} = Network.start_link(self(), "127.0.0.1", 1, opts)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, reason}}}
    assert is_atom(reason)
    assert %{is_connected: false} = :sys.get_state(network)
  end
end
