defmodule Barytherium.Client.Transaction do
  @moduledoc """
  A transaction of `Barytherium.Client.transaction/3`. `Barytherium.Client.publish/4`, `ack/3` and
  `nack/4` take it in place of the client, until it has ended.
  """

  alias Barytherium.Frame
  alias Barytherium.Network.Sender

  @enforce_keys [:client, :sender, :id, :timeout, :over]
  defstruct @enforce_keys

  @typedoc "The fields are private."
  @type t :: %__MODULE__{
          client: GenServer.server(),
          sender: pid(),
          id: String.t(),
          timeout: non_neg_integer(),
          over: :atomics.atomics_ref()
        }

  @doc false
  @spec new_id() :: String.t()
  def new_id, do: "tx-#{System.unique_integer([:positive])}"

  @doc false
  # The client has written BEGIN.
  @spec new(
          GenServer.server(),
          pid(),
          {String.t(), :atomics.atomics_ref()},
          non_neg_integer()
        ) :: t()
  def new(client, sender, {id, over}, timeout) do
    %__MODULE__{client: client, sender: sender, id: id, timeout: timeout, over: over}
  end

  @doc false
  # Calls the function. If it fails, the client writes ABORT.
  @spec run(t(), (t() -> result)) :: result when result: term()
  def run(%__MODULE__{id: id} = transaction, fun) do
    result = fun.(transaction)
    close(transaction)
    result
  catch
    kind, reason ->
      close(transaction)
      :gen_statem.cast(transaction.client, {:abort, id})
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  # Whoever has kept it writes nothing more in it.
  defp close(%__MODULE__{over: over}), do: :atomics.put(over, 1, 1)

  @doc false
  @spec frame(String.t(), :begin | :commit | :abort) :: Frame.t()
  def frame(id, command), do: %Frame{command: command, headers: [{"transaction", id}]}

  @doc false
  @spec header(t()) :: {String.t(), String.t()}
  def header(%__MODULE__{id: id}), do: {"transaction", id}

  @doc false
  # Always on the connection on which it was begun.
  @spec write(t(), [Frame.t()]) :: :ok | {:error, atom()}
  def write(%__MODULE__{sender: sender, timeout: timeout} = transaction, frames) do
    if over?(transaction),
      do: {:error, :transaction_over},
      else: Sender.write_within(sender, frames, timeout)
  end

  @doc false
  @spec over?(t()) :: boolean()
  def over?(%__MODULE__{over: over}), do: :atomics.get(over, 1) == 1
end
