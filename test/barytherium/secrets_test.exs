defmodule Barytherium.SecretsTest do
  use ExUnit.Case, async: true

  import Barytherium.NetworkCase, only: [connect: 1]

  alias Barytherium.{Frame, Network, Peer}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  @secret "hunter2"

  test "secrets are not in a state, a status, an inspected frame or a crash report" do
    {network, peer} = connect(self())
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    headers = [{"login", @secret}, {"passcode", @secret}, {"heart-beat", "0,0"}]
    connect = %Frame{command: :connect, headers: headers}
    refute inspect(connect) =~ @secret
    Sender.write(sender, [connect])
    # This one waits in the sender's state.
    Sender.write(sender, [%Frame{command: :stomp, headers: [{"passcode", @secret}]}])
    %{receiver_pid: receiver} = state = :sys.get_state(network)
    refute inspect(state, limit: :infinity) =~ @secret

    for pid <- [network, sender, receiver] do
      refute :io_lib.format("~p", [:sys.get_status(pid)]) |> IO.iodata_to_binary() =~ @secret
    end

    Process.flag(:trap_exit, true)

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        monitor = Process.monitor(sender)
        :sys.replace_state(sender, fn _state -> :broken end)
        Sender.write(sender, [connect])
        assert_receive {:DOWN, ^monitor, :process, ^sender, _reason}
        # The connection ends, but the network does not.
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
        assert Process.alive?(network)
      end)

    assert log =~ "terminating"
    refute log =~ @secret
    Peer.close(peer)
  end

  test "secrets are not in frames with unusual headers, in child specs or in error messages" do
    for header <- [{~c"passcode", @secret}, {:PASSCODE, @secret}, ["passcode", @secret]] do
      refute inspect(%Frame{command: :connect, headers: [header]}) =~ @secret
    end

    refute inspect(%Frame{command: :connect, headers: [{"passcode", @secret} | @secret]}) =~
             @secret

    args = ["localhost", 1, "/", [{"passcode", @secret}]]
    refute inspect(Barytherium.DefaultCallbackHandler.child_spec(args)) =~ @secret

    for opts <- [%{password: @secret}, [%{password: @secret}]] do
      error = assert_raise ArgumentError, fn -> Network.start_link(self(), "a", 1, opts) end
      refute Exception.message(error) =~ @secret
    end
  end

  test "secrets of TLS are not in the network's state" do
    listener = Peer.listen(:tcp)
    opts = [secure: true, verify: :verify_none, password: @secret, connect_timeout: 100]
    {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    refute inspect(:sys.get_status(network), limit: :infinity) =~ @secret
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, :timeout}}}
  end
end
