defmodule Barytherium.Network.TlsLockTest do
  @moduledoc "Reading and writing share one TLS session."
  use Barytherium.ReceiverCase, async: true

  alias Barytherium.Native

  # The records are not sent, so the peer must not read what the client writes afterwards.
  defp hold(tls, data) do
    Native.tls_encrypt_large(tls, data)
    hold(tls, data)
  end

  test "frames are not lost while another thread has the session" do
    frames = for n <- 1..50, do: "MESSAGE\nn:#{n}\n\n\0"

    for _time <- 1..20 do
      {_receiver, peer, socket} = start_receiver(:tls)
      # They are decoded with CONNECTED, and delivered by the call after it.
      Peer.send(peer, [connected_bytes(), frames])
      assert [%Frame{command: :connected}] = receive_frames()
      data = String.duplicate("x", 10_000_000)
      holders = for _n <- 1..2, do: spawn_link(fn -> hold(socket.tls, data) end)
      Process.sleep(5)
      reply_heart_beats(0)
      assert length(receive_frames(50)) == 50

      for holder <- holders do
        Process.unlink(holder)
        Process.exit(holder, :kill)
      end

      Connection.abandon(socket)
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, _reason}}
    end
  end
end
