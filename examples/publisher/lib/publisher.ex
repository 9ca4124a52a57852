defmodule Publisher do
  @moduledoc "Publishes messages until the broker has confirmed all of them."

  alias Barytherium.Client

  # Without a connection each attempt waits for one, for 5 s.
  @attempts 10

  @doc "Publishes the numbers from 1 to `count`."
  def run(count) do
    case publish(for n <- 1..count, do: {"/queue/orders", to_string(n)}) do
      :ok -> IO.puts("The broker has confirmed #{count} messages.")
      {:error, left} -> raise "#{length(left)} messages are not confirmed"
    end
  end

  @doc "Returns the messages that are still not confirmed after #{@attempts} attempts."
  @spec publish([Client.message()]) :: :ok | {:error, [Client.message()]}
  def publish(messages, attempts \\ @attempts)
  def publish(messages, 0), do: {:error, messages}

  def publish(messages, attempts) do
    with {:error, error, left} <- Client.publish_many(Publisher.Client, messages, wait: true) do
      IO.puts("#{length(left)} messages are not confirmed: #{Exception.message(error)}")
      publish(left, attempts - 1)
    end
  end
end
