defmodule Barytherium.RemoteNode do
  @moduledoc "Starts a second node on the loopback interface, and processes on it."

  @doc "Starts a node that is linked to the caller. Makes this node distributed if it is not yet."
  def start! do
    unless Node.alive?() do
      System.cmd("epmd", ["-daemon"])
      name = :"barytherium_#{System.unique_integer([:positive])}@127.0.0.1"
      {:ok, _pid} = Node.start(name, :longnames)
    end

    paths = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    cookie = [~c"-setcookie", Atom.to_charlist(Node.get_cookie())]
    options = %{name: :peer.random_name(), host: ~c"127.0.0.1", args: cookie ++ paths}
    {:ok, _peer, node} = :peer.start_link(options)
    node
  end

  @doc "A process on `node` that forwards each message to `pid`, as `{:forwarded, message}`."
  def forwarder(node, pid), do: :erlang.spawn(node, __MODULE__, :forward, [pid])

  @doc false
  def forward(pid) do
    receive do
      message -> send(pid, {:forwarded, message})
    end

    forward(pid)
  end
end
