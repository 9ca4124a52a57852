defmodule Barytherium.HttpProxy do
  @moduledoc """
  An HTTP proxy that makes tunnels (`CONNECT`) to the loopback interface, whatever the name of the server is. The
  process that starts it gets `{:proxied, target, headers}` for each request.
  """

  alias Barytherium.{Peer, WebSocketPeer}

  @tunnel "HTTP/1.1 200 Connection established\r\n\r\n"

  @doc "Starts a proxy. `answer` is what it says to each request. Returns its port."
  def start(answer \\ @tunnel) do
    listener = Peer.listen(:tcp)
    test = self()
    pid = spawn_link(fn -> receive(do: (:go -> serve(listener, test, answer))) end)
    :ok = :gen_tcp.controlling_process(listener, pid)
    send(pid, :go)
    Peer.port(listener)
  end

  defp serve(listener, test, answer) do
    {:ok, socket} = :gen_tcp.accept(listener)
    pid = spawn_link(fn -> receive(do: (:go -> tunnel(socket, test, answer))) end)
    :ok = :gen_tcp.controlling_process(socket, pid)
    send(pid, :go)
    serve(listener, test, answer)
  end

  defp tunnel(socket, test, answer) do
    {["CONNECT " <> line | lines], ""} = WebSocketPeer.read_request(socket, "")
    [target, "HTTP/1.1"] = String.split(line, " ")
    send(test, {:proxied, target, WebSocketPeer.headers(lines)})
    :ok = :gen_tcp.send(socket, answer)

    if answer == @tunnel do
      port = target |> String.split(":") |> List.last() |> String.to_integer()

      with {:ok, server} <- :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false]) do
        spawn_link(fn -> pump(socket, server) end)
        pump(server, socket)
      end
    end
  end

  defp pump(from, to) do
    case :gen_tcp.recv(from, 0) do
      {:ok, data} ->
        :gen_tcp.send(to, data)
        pump(from, to)

      {:error, _closed} ->
        :gen_tcp.shutdown(to, :write)
    end
  end
end
